// Sequences of a model's layers in an engine on a GPU, and queries for them: what the benchmark of
// decode steps runs on.
#ifndef WAVEKV_BENCH_CUDA_DECODE_CONTEXT_H_
#define WAVEKV_BENCH_CUDA_DECODE_CONTEXT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/cuda/device_bench.h"
#include "wavekv/engine.h"
#include "wavekv/options.h"
#include "wavekv/tensor_view.h"

namespace wavekv::bench {

struct DecodeShape {
  int num_kv_heads = 8;
  int gqa_group_size = 4;
  int head_dim = 128;
  int64_t num_tokens = 131072;  // of the stream that contexts are cut from
  int64_t num_queries = 32;     // of its last positions
  IndexOptions index;

  int num_q_heads() const { return num_kv_heads * gqa_group_size; }
  int64_t token_bytes() const { return int64_t{2} * num_kv_heads * head_dim * 2; }
};

// Keys, values and queries in bf16 in device memory, drawn once: all layers and sequences hold the
// same numbers, each a copy of its own.
class DecodeData {
 public:
  // Draws on all processors.
  static absl::StatusOr<std::unique_ptr<DecodeData>> Create(DeviceBench& bench,
                                                            const DecodeShape& shape);

  const DecodeShape& shape() const { return shape_; }
  TensorView keys(int64_t begin, int64_t num_rows) const;
  TensorView values(int64_t begin, int64_t num_rows) const;
  // Rows of a batch of so many sequences; each asks another query, until they begin again.
  TensorView queries(int64_t batch) const;
  TensorView host_queries(int64_t batch) const;
  int64_t bytes() const { return 2 * shape_.num_tokens * shape_.token_bytes(); }

 private:
  DecodeData(DeviceBench& bench, const DecodeShape& shape)
      : shape_(shape), arena_(bench.MakeArena()) {}

  const DecodeShape shape_;
  DeviceArena arena_;
  const uint16_t* keys_ = nullptr;     // [num_kv_heads, num_tokens, head_dim]
  const uint16_t* values_ = nullptr;   // the same
  const uint16_t* queries_ = nullptr;  // [kBatchMax, num_q_heads, head_dim]
  std::vector<float> host_queries_;    // the same
};

inline constexpr int64_t kBatchMax = 256;

// What a step differs by from exact attention, and what both read, of one layer.
struct DecodeQuality {
  double rel_err_mean = 0.0;  // of |output - exact| / |exact| over rows and query heads
  int64_t bytes_read = 0;
  int64_t bytes_dense = 0;
};

class DecodeContext {
 public:
  // Options of an engine that holds batch sequences of so many tokens in each layer, and the tokens
  // that steps append.
  static EngineOptions Options(const DecodeShape& shape, int layers, int64_t batch, int64_t tokens);

  // Appends, and waits until all is sealed.
  static absl::StatusOr<std::unique_ptr<DecodeContext>> Create(DeviceBench& bench,
                                                               const DecodeData& data, int layers,
                                                               int64_t batch, int64_t tokens);

  int num_layers() const { return engine_->options().model.num_layers; }
  int64_t num_tokens() const { return num_tokens_; }

  // Of the first `batch` sequences, with tensors in host memory.
  absl::StatusOr<DecodeQuality> Measure(const AttendOptions& options, int64_t batch);

  // A step of the first `batch` sequences in all layers: appends a token and attends, captured in a
  // graph, launched once and checked. The context outlives it.
  absl::StatusOr<DeviceBench::Prepared> CaptureStep(const AttendOptions& options, int64_t batch);

  // Attend alone, called anew for each layer.
  absl::StatusOr<DeviceBench::Prepared> CallAttend(const AttendOptions& options, int64_t batch);

 private:
  DecodeContext(DeviceBench& bench, const DecodeData& data, int64_t num_tokens)
      : bench_(bench), data_(data), num_tokens_(num_tokens), arena_(bench.MakeArena()) {}

  class Step;

  // Attends with tensors in host memory, in layer 0.
  absl::StatusOr<AttendStats> AttendOnHost(const AttendOptions& options, int64_t batch,
                                           std::vector<float>& output);
  // Whether what a step wrote for layer 0 is what AttendOnHost answers now.
  absl::Status CheckOutput(const AttendOptions& options, int64_t batch);
  absl::Status AppendTokens(const Sequence& sequence, int layer);
  absl::StatusOr<Plan> MakePlan(const AttendOptions& options, int64_t batch) const;
  MutableTensorView output(int layer, int64_t batch) const;
  std::function<absl::Status()> FlushCache() const;

  DeviceBench& bench_;
  const DecodeData& data_;
  const int64_t num_tokens_;
  DeviceArena arena_;
  std::byte* flushed_ = nullptr;
  uint16_t* outputs_ = nullptr;  // [layers, batch, num_q_heads, head_dim]
  int64_t batch_max_ = 0;
  std::unique_ptr<Engine> engine_;
  std::vector<Sequence> sequences_;
};

// Seconds from the first Append of a prompt of all tokens of `data` to one layer until all of it is
// sealed, by the wall clock: builds are queued by threads of their own, beside the appends.
absl::StatusOr<double> MeasureBuild(DeviceBench& bench, const DecodeData& data);

}  // namespace wavekv::bench

#endif  // WAVEKV_BENCH_CUDA_DECODE_CONTEXT_H_
