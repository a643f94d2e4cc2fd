// From what queries read to what a cache would be asked for, by unit of caching.
#ifndef WAVEKV_BENCH_UNIT_TRACE_H_
#define WAVEKV_BENCH_UNIT_TRACE_H_

#include <cstdint>
#include <vector>

#include "bench/cache_replay.h"
#include "tools/trace/access_log.h"

namespace wavekv::bench {

// What is cached and fetched as one.
struct CacheUnit {
  int64_t tokens = 0;  // of a block; 0: all blocks of a cluster, of BlockShape::block_tokens
};

// What the heads that take part read, and would read with a larger budget.
struct RecordedHead {
  int64_t layer = 0;
  BlockShape shape;
  HeadAccesses reads;
  HeadAccesses wider;  // of the same queries; without queries: no hints
};

// Bytes of all blocks of the heads' segments: what the sizes of caches are shares of.
int64_t AllBlocksBytes(const std::vector<RecordedHead>& heads);

// One batch for each query and layer, in the order of the queries, layer by layer; its heads' reads
// take turns. A unit is read when one of its tokens is. Hints are what `wider` reads beyond
// `reads`. The first quarter of the queries is not counted. REQUIRES: all heads have the same
// queries, and equal block shapes.
UnitTrace MakeUnitTrace(const std::vector<RecordedHead>& heads, CacheUnit unit);

}  // namespace wavekv::bench

#endif  // WAVEKV_BENCH_UNIT_TRACE_H_
