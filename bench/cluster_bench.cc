// The index's operations on the CPU: building (k-means passes) and asking (scores, selection,
// estimates), each for the shapes of a 128K-token context.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "bench/bench_main.h"
#include "cpu/cpu_backend.h"
#include "storage/cluster_index.h"
#include "storage/float16.h"

namespace wavekv {
namespace {

constexpr int kDim = 128;

std::vector<float> Gaussians(int64_t count, float deviation = 1.0f) {
  std::mt19937_64 engine(1);
  std::normal_distribution<float> gaussian(0.0f, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = gaussian(engine);
  return values;
}

class Machine {
 public:
  Backend& operator*() { return *backend_; }

 private:
  std::unique_ptr<Executor> pool_ =
      MakeThreadPool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  std::unique_ptr<Backend> backend_ = MakeCpuBackend(pool_.get());
};

// A sealed index whose clusters hold 16 tokens each. Its rows are never read here.
class Index {
 public:
  Index(int64_t num_clusters, StatisticsFormat statistics) {
    const ClusterIndexShape shape = {{kDim, kDim, DType::kBFloat16},
                                     statistics,
                                     /*code_bits=*/1,
                                     num_clusters,
                                     num_clusters / 16,
                                     16 * num_clusters};
    extent_.reset(static_cast<std::byte*>(std::aligned_alloc(64, ClusterIndexBytes(shape))));
    MutableClusterIndex index = FormatClusterIndex(extent_.get(), shape, 0);
    const std::vector<float> numbers = Gaussians(num_clusters * kDim);
    for (int64_t i = 0; i <= num_clusters; ++i) index.offsets[i] = static_cast<uint32_t>(16 * i);
    std::fill_n(index.log_sizes, num_clusters, std::log(16.0f));
    std::fill_n(index.key_spreads, num_clusters, 0.5f);
    std::fill_n(index.value_spreads, num_clusters, 0.5f);
    std::fill_n(index.mean_value, kDim, 0.1f);
    std::fill_n(index.mean_key, kDim, 0.1f);
    for (int64_t i = 0; i <= shape.num_supers; ++i) {
      index.super_offsets[i] = static_cast<uint32_t>(16 * i);
    }
    const auto fill = [&](const MutableStatisticsRows& means, StatisticsFormat format,
                          int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        float scale;
        StoreStatisticsRow(&numbers[i * kDim], kDim, format, means.row(i), &scale);
        if (means.scales != nullptr) means.scales[i] = scale;
      }
    };
    fill(index.centroids, statistics, num_clusters);
    fill(index.value_means, statistics, num_clusters);
    fill(index.super_centroids, SuperFormat(statistics), shape.num_supers);
    fill(index.super_value_means, SuperFormat(statistics), shape.num_supers);
    const std::vector<float> bits = Gaussians(index.num_tokens * index.code_words());
    for (int64_t i = 0; i < index.num_tokens * index.code_words(); ++i) {
      index.codes[i] = std::bit_cast<uint32_t>(bits[i]) * uint64_t{0x9e3779b97f4a7c15};
    }
    std::fill_n(index.code_factors, index.num_tokens, Float32ToFloat16(0.1f));
    index_ = ReadOnly(index);
  }

  const ClusterIndex& operator*() const { return index_; }

 private:
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };
  std::unique_ptr<std::byte, Free> extent_;
  ClusterIndex index_;
};

std::vector<int16_t> Integers(int64_t count) {
  std::vector<int16_t> integers;
  for (const float value : Gaussians(count, 500.0f)) {
    integers.push_back(static_cast<int16_t>(value));
  }
  return integers;
}

void AssignClusters(benchmark::State& state) {
  const int64_t num_points = state.range(0), num_centroids = state.range(1);
  const std::vector<int16_t> points = Integers(num_points * kDim);
  const std::vector<int16_t> centroids = Integers(num_centroids * kDim);
  std::vector<int32_t> assignment(num_points);
  const AssignClustersTask task = {.points = points.data(),
                                   .num_points = num_points,
                                   .centroids = centroids.data(),
                                   .num_centroids = num_centroids,
                                   .dim = kDim,
                                   .assignment = assignment.data()};
  Machine machine;
  for (auto _ : state) benchmark::DoNotOptimize((*machine).AssignClusters({&task, 1}).ok());
  state.counters["products"] = benchmark::Counter(num_points * num_centroids * kDim,
                                                  benchmark::Counter::kIsIterationInvariantRate);
}

void UpdateCentroids(benchmark::State& state) {
  const int64_t num_points = state.range(0), num_clusters = state.range(1);
  const std::vector<float> points = Gaussians(num_points * kDim);
  std::vector<float> means(num_clusters * kDim);
  std::vector<uint32_t> offsets(num_clusters + 1), members(num_points);
  for (int64_t i = 0; i <= num_clusters; ++i) {
    offsets[i] = static_cast<uint32_t>(i * num_points / num_clusters);
  }
  std::iota(members.begin(), members.end(), 0u);
  std::shuffle(members.begin(), members.end(), std::mt19937_64(2));
  const UpdateCentroidsTask task = {.points = points.data(),
                                    .dim = kDim,
                                    .offsets = offsets.data(),
                                    .members = members.data(),
                                    .num_clusters = num_clusters,
                                    .normalize = true,
                                    .means = means.data()};
  Machine machine;
  for (auto _ : state) benchmark::DoNotOptimize((*machine).UpdateCentroids({&task, 1}).ok());
  state.SetBytesProcessed(state.iterations() * num_points * kDim * 4);
}

// One GQA group of four heads.
constexpr int kQueries = 4;

void ScoreClusters(benchmark::State& state) {
  const int64_t num_clusters = state.range(0);
  const auto statistics = static_cast<StatisticsFormat>(state.range(1));
  const Index index(num_clusters, statistics);
  const std::vector<float> queries = Gaussians(kQueries * kDim, 0.1f);
  std::vector<float> masses(kQueries * num_clusters);
  std::vector<float> scores(kQueries * num_clusters);
  const ScoreClustersTask task = {.queries = queries.data(),
                                  .num_queries = kQueries,
                                  .index = &*index,
                                  .log_masses = masses.data(),
                                  .stride = num_clusters,
                                  .mass = MassEstimate::kSecondOrder,
                                  .rank_scores = scores.data()};
  Machine machine;
  for (auto _ : state) benchmark::DoNotOptimize((*machine).ScoreClusters({&task, 1}).ok());
  state.SetBytesProcessed(state.iterations() * num_clusters * StatisticsRowBytes(statistics, kDim));
}

void ScoreTokens(benchmark::State& state) {
  const int64_t num_clusters = state.range(0);
  const Index index(num_clusters, StatisticsFormat::kInt4);
  const std::vector<float> queries = Gaussians(kQueries * kDim, 0.1f);
  const std::vector<float> masses = Gaussians(kQueries * num_clusters);
  std::vector<uint32_t> clusters;  // every fourth
  for (int64_t i = 0; i < num_clusters; i += 4) clusters.push_back(static_cast<uint32_t>(i));
  const auto num_tokens = static_cast<int64_t>(16 * clusters.size());
  std::vector<float> token_masses(kQueries * num_tokens), shares(num_tokens);
  float offsets[kQueries];
  const std::vector<float> log_totals(kQueries, 5.0f);
  const ScoreTokensTask task = {.queries = queries.data(),
                                .num_queries = kQueries,
                                .index = &*index,
                                .log_masses = masses.data(),
                                .log_masses_stride = num_clusters,
                                .clusters = clusters.data(),
                                .num_clusters = static_cast<int64_t>(clusters.size()),
                                .masses = token_masses.data(),
                                .offsets = offsets,
                                .stride = num_tokens,
                                .log_totals = log_totals.data(),
                                .shares = shares.data()};
  Machine machine;
  for (auto _ : state) benchmark::DoNotOptimize((*machine).ScoreTokens({&task, 1}).ok());
  state.SetItemsProcessed(state.iterations() * num_tokens);
}

void SelectClusters(benchmark::State& state) {
  const int64_t num_clusters = state.range(0);
  const std::vector<float> masses =
      Gaussians(kQueries * num_clusters, static_cast<float>(state.range(1)));
  const std::vector<uint32_t> sizes(num_clusters, 16);
  std::vector<float> probabilities(num_clusters);
  std::vector<Zone> zones(num_clusters);
  std::vector<uint32_t> retrieved(num_clusters);
  int64_t num_retrieved;
  const SelectClustersTask task = {.scores = masses.data(),
                                   .stride = num_clusters,
                                   .num_queries = kQueries,
                                   .sizes = sizes.data(),
                                   .num_clusters = num_clusters,
                                   .token_budget = num_clusters * 16 / 50,
                                   .num_estimation = num_clusters / 4,
                                   .probabilities = probabilities.data(),
                                   .zones = zones.data(),
                                   .retrieved = retrieved.data(),
                                   .num_retrieved = &num_retrieved};
  Machine machine;
  for (auto _ : state) benchmark::DoNotOptimize((*machine).SelectClusters({&task, 1}).ok());
  state.SetItemsProcessed(state.iterations() * num_clusters);
}

void EstimateClusters(benchmark::State& state) {
  const int64_t num_clusters = state.range(0);
  const Index index(num_clusters, static_cast<StatisticsFormat>(state.range(1)));
  const std::vector<float> queries = Gaussians(kQueries * kDim, 0.1f);
  const std::vector<float> masses = Gaussians(kQueries * num_clusters);
  std::vector<Zone> zones(num_clusters);
  for (int64_t i = 0; i < num_clusters; ++i) {
    zones[i] = i % 50 == 0 ? Zone::kRetrieval : i % 4 == 1 ? Zone::kEstimation : Zone::kRemainder;
  }
  std::vector<float> output(kQueries * kDim), lse(kQueries), missing(kQueries), variance(kQueries);
  const EstimateClustersTask task = {.queries = queries.data(),
                                     .num_queries = kQueries,
                                     .index = &*index,
                                     .log_masses = masses.data(),
                                     .log_masses_stride = num_clusters,
                                     .zones = zones.data(),
                                     .output = output.data(),
                                     .lse = lse.data(),
                                     .missing_lse = missing.data(),
                                     .value_variance = variance.data()};
  Machine machine;
  for (auto _ : state) benchmark::DoNotOptimize((*machine).EstimateClusters({&task, 1}).ok());
  state.SetItemsProcessed(state.iterations() * num_clusters);
}

void ConvertRows(benchmark::State& state) {
  const auto source_dtype = static_cast<DType>(state.range(0));
  const auto target_dtype = static_cast<DType>(state.range(1));
  constexpr int64_t kRows = 4096;
  const std::vector<float> numbers = Gaussians(kRows * kDim);
  std::vector<float> source(kRows * kDim), target(kRows * kDim);
  for (int64_t i = 0; i < kRows * kDim; ++i) {
    StoreElement(source.data(), source_dtype, i, numbers[i]);
  }
  bool all_finite;
  const ConvertRowsTask task = {.source = source.data(),
                                .source_dtype = source_dtype,
                                .source_stride = kDim,
                                .target = target.data(),
                                .target_dtype = target_dtype,
                                .target_stride = kDim,
                                .num_rows = kRows,
                                .row_elements = kDim,
                                .scale = static_cast<float>(state.range(2)),
                                .all_finite = &all_finite};
  Machine machine;
  for (auto _ : state) benchmark::DoNotOptimize((*machine).ConvertRows({&task, 1}).ok());
  state.SetBytesProcessed(state.iterations() * kRows * kDim *
                          (DTypeBytes(source_dtype) + DTypeBytes(target_dtype)));
}

constexpr auto kMicroseconds = benchmark::kMicrosecond;

BENCHMARK(AssignClusters)
    ->ArgNames({"points", "centroids"})
    ->Args({8192, 512})
    ->Args({1024, 64})
    ->Unit(kMicroseconds)
    ->UseRealTime();
BENCHMARK(UpdateCentroids)
    ->ArgNames({"points", "clusters"})
    ->Args({8192, 512})
    ->Unit(kMicroseconds)
    ->UseRealTime();
BENCHMARK(ScoreClusters)
    ->ArgNames({"clusters", "statistics"})
    ->ArgsProduct({{512, 8192}, {1, 2, 3}})
    ->Unit(kMicroseconds)
    ->UseRealTime();
BENCHMARK(ScoreTokens)
    ->ArgName("clusters")
    ->Arg(512)
    ->Arg(8192)
    ->Unit(kMicroseconds)
    ->UseRealTime();
BENCHMARK(SelectClusters)
    ->ArgNames({"clusters", "deviation"})
    ->ArgsProduct({{8192, 65536}, {0, 3}})
    ->Unit(kMicroseconds)
    ->UseRealTime();
BENCHMARK(EstimateClusters)
    ->ArgNames({"clusters", "statistics"})
    ->ArgsProduct({{512, 8192}, {1, 2, 3}})
    ->Unit(kMicroseconds)
    ->UseRealTime();
BENCHMARK(ConvertRows)
    ->ArgNames({"source", "target", "scale"})
    ->ArgsProduct({{1, 2, 3}, {1, 2, 3}, {1}})
    ->Args({3, 1, 2})
    ->Unit(kMicroseconds)
    ->UseRealTime();

}  // namespace
}  // namespace wavekv

int main(int argc, char** argv) {
  return wavekv::bench::BenchMain(
      argc, argv, {}, [] { return absl::OkStatus(); }, [](const wavekv::bench::Milliseconds&) {});
}
