// What sealing a segment costs for one kv head, and how good the result is; Faiss's own clustering
// of the same keys beside it.
//
// Counters: tokens/s of one thread; captured, the share of the attention mass in the retrieved 1.8
// % of the tokens; recall, of the 100 heaviest tokens; error, of the output with all other clusters
// estimated.
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cpu/cpu_backend.h"
#include "index/segment_builder.h"
#include "storage/float16.h"
#include "tests/index/index_quality.h"
#include "wavekv/executor.h"

namespace wavekv {
namespace {

constexpr int64_t kNumTokens = 8192;
constexpr int kDim = 128;
constexpr KvShape kShape = {kDim, kDim, DType::kBFloat16};

std::vector<std::byte> RoundToBFloat16(std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(uint16_t));
  for (size_t i = 0; i < values.size(); ++i) {
    StoreElement(bytes.data(), DType::kBFloat16, i, values[i]);
    values[i] = LoadElement(bytes.data(), DType::kBFloat16, i);
  }
  return bytes;
}

// A segment as it is stored, and as fp32 to measure with.
struct Segment {
  Segment() : attention(kNumTokens, 64, kDim, 1) {
    keys = RoundToBFloat16(attention.keys);
    values = RoundToBFloat16(attention.values);
    rows = {keys.data(), values.data(), kNumTokens, 0, nullptr};
  }

  TextLikeAttention attention;
  std::vector<std::byte> keys;
  std::vector<std::byte> values;
  KvRange rows;
};

const Segment& TheSegment() {
  static const Segment segment;
  return segment;
}

void Report(benchmark::State& state, const Clustering& clustering) {
  const TextLikeAttention& attention = TheSegment().attention;
  const IndexQuality quality = MeasureIndexQuality(clustering, attention.keys, attention.values,
                                                   attention.queries, kDim, 0.018);
  state.counters["captured"] = quality.captured_mass;
  state.counters["recall"] = quality.recall_at_100;
  state.counters["error"] = quality.output_error;
  state.SetItemsProcessed(state.iterations() * kNumTokens);
}

// Rows to sealed index.
void BM_BuildSegment(benchmark::State& state) {
  const Segment& segment = TheSegment();
  const auto executor = MakeThreadPool(1);
  const auto backend = MakeCpuBackend(executor.get());
  const ClusteringOptions options = {.kmeans_iterations = static_cast<int>(state.range(0))};
  Clustering clustering;
  std::unique_ptr<std::byte, decltype(&std::free)> extent(nullptr, &std::free);
  for (auto _ : state) {
    auto result = ClusterRows({&segment.rows, 1}, kShape, options, *backend);
    if (!result.ok()) {
      state.SkipWithError(result.status().ToString().c_str());
      return;
    }
    clustering = *std::move(result);
    if (extent == nullptr) {
      const int64_t num_bytes =
          ClusterIndexBytes(kShape, DType::kFloat32, clustering.num_clusters(), kNumTokens);
      extent.reset(static_cast<std::byte*>(std::aligned_alloc(64, num_bytes)));
    }
    WriteClusterIndex({&segment.rows, 1}, clustering,
                      FormatClusterIndex(extent.get(), kShape, DType::kFloat32, 0,
                                         clustering.num_clusters(), kNumTokens));
  }
  Report(state, clustering);
}
BENCHMARK(BM_BuildSegment)
    ->ArgName("iterations")
    ->DenseRange(0, 4)
    ->Arg(10)
    ->Unit(benchmark::kMillisecond);

// Its second half alone: permuting the rows and computing the statistics.
void BM_WriteClusterIndex(benchmark::State& state) {
  const Segment& segment = TheSegment();
  const auto executor = MakeThreadPool(1);
  const auto backend = MakeCpuBackend(executor.get());
  const Clustering clustering = *ClusterRows({&segment.rows, 1}, kShape, {}, *backend);
  std::unique_ptr<std::byte, decltype(&std::free)> extent(
      static_cast<std::byte*>(std::aligned_alloc(
          64, ClusterIndexBytes(kShape, DType::kFloat32, clustering.num_clusters(), kNumTokens))),
      &std::free);
  for (auto _ : state) {
    WriteClusterIndex({&segment.rows, 1}, clustering,
                      FormatClusterIndex(extent.get(), kShape, DType::kFloat32, 0,
                                         clustering.num_clusters(), kNumTokens));
  }
  state.SetItemsProcessed(state.iterations() * kNumTokens);
}
BENCHMARK(BM_WriteClusterIndex)->Unit(benchmark::kMillisecond);

// Clustering alone, without statistics or permutation, by Faiss.
void BM_FaissClustering(benchmark::State& state) {
  const Segment& segment = TheSegment();
  Clustering clustering;
  for (auto _ : state) {
    clustering = ClusterByFaiss(segment.attention.keys, kDim, kNumTokens / 16,
                                static_cast<int>(state.range(0)), 1);
  }
  Report(state, clustering);
}
BENCHMARK(BM_FaissClustering)
    ->ArgName("iterations")
    ->Arg(4)
    ->Arg(10)
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace wavekv
