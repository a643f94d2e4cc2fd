// Exact attention of a decode step on a GPU: dense over whole contexts, sparse over single rows.
#ifndef WAVEKV_BENCH_CUDA_ATTENTION_BENCHMARKS_H_
#define WAVEKV_BENCH_CUDA_ATTENTION_BENCHMARKS_H_

#include <cstdint>
#include <vector>

#include "bench/cuda/device_bench.h"

namespace wavekv::bench {

// One layer of a model with 8 kv heads of 128 bf16 elements and 4 query heads for each. Registers,
// for each batch and number of tokens that the device has the memory for,
//   attend_dense/batch:B/tokens:T            every token, in chunks of 64 that lie anywhere
//   attend_sparse/batch:B/tokens:T/percent:2 random rows
// each with the merge of its splits. As many splits as turn out to be fastest; the counter `splits`
// says how many. Counted are the bytes of keys and values.
void RegisterAttention(DeviceBench& bench, const std::vector<int64_t>& batches,
                       const std::vector<int64_t>& tokens);

}  // namespace wavekv::bench

#endif  // WAVEKV_BENCH_CUDA_ATTENTION_BENCHMARKS_H_
