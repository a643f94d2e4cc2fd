#include "bench/cuda/attention_benchmarks.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cuda/attend_rows.h"
#include "cuda/merge_states.h"
#include "storage/float16.h"
#include "storage/status_macros.h"
#include "tests/testing/naive_attention.h"

namespace wavekv::bench {
namespace {

constexpr int kKvHeads = 8;
constexpr int kGroup = 4;  // query heads of a kv head
constexpr int kHeadDim = 128;
constexpr int64_t kRowBytes = 2 * kHeadDim;  // of keys, and of values
constexpr int64_t kChunkTokens = 64;
constexpr int64_t kChunkBytes = kChunkTokens * 2 * kRowBytes;  // keys, then values
constexpr int kPercent = 2;                                    // of the rows, sparse

struct Case {
  int64_t batch = 1;
  int64_t tokens = 0;  // of each sequence, a multiple of kChunkTokens
  bool sparse = false;

  int64_t num_tasks() const { return batch * kKvHeads; }
  int64_t head_bytes() const { return tokens * 2 * kRowBytes; }
  int64_t layer_bytes() const { return num_tasks() * head_bytes(); }
  int64_t tokens_read() const {
    return sparse ? std::max<int64_t>(tokens * kPercent / 100, 1) : tokens;
  }
  int64_t bytes_read() const { return num_tasks() * tokens_read() * 2 * kRowBytes; }
};

// What one layer's launch needs, on the device and, for the check, on the host.
class AttentionLayers {
 public:
  AttentionLayers(DeviceBench& bench, const Case& setup) : bench_(bench), case_(setup) {}

  absl::StatusOr<DeviceBench::Prepared> Prepare(DeviceArena& arena) {
    num_layers_ = bench_.NumLayers(case_.bytes_read(), case_.layer_bytes());
    WAVEKV_ASSIGN_OR_RETURN(data_, bench_.RandomData(num_layers_ * case_.layer_bytes()));
    const int64_t outputs = case_.num_tasks() * SplitsMax() * kGroup;
    WAVEKV_ASSIGN_OR_RETURN(split_output_, arena.Allocate<float>(outputs * kHeadDim));
    WAVEKV_ASSIGN_OR_RETURN(split_lse_, arena.Allocate<float>(outputs));
    WAVEKV_ASSIGN_OR_RETURN(output_, arena.Allocate<float>(case_.num_tasks() * kGroup * kHeadDim));
    WAVEKV_ASSIGN_OR_RETURN(lse_, arena.Allocate<float>(case_.num_tasks() * kGroup));
    // Scores of deviation 3: a few tokens have most of the mass, so that a wrong one shows.
    std::normal_distribution<float> gaussian(0.0f, 3.0f / std::sqrt(1.0f * kHeadDim));
    queries_.resize(static_cast<size_t>(case_.num_tasks() * kGroup * kHeadDim));
    for (float& element : queries_) element = gaussian(engine_);
    WAVEKV_ASSIGN_OR_RETURN(const float* const queries, arena.Upload(queries_));
    for (int layer = 0; layer < num_layers_; ++layer) {
      WAVEKV_RETURN_IF_ERROR(AddLayer(layer, queries, arena));
    }
    WAVEKV_RETURN_IF_ERROR(ChooseSplits(arena));
    for (const int64_t task : {int64_t{0}, case_.num_tasks() - 1}) {
      WAVEKV_RETURN_IF_ERROR(Check(task));
    }
    DeviceBench::Prepared prepared;
    prepared.num_layers = num_layers_;
    prepared.bytes = case_.bytes_read();
    prepared.counters["splits"] = num_splits_;
    prepared.launch = [this](int layer) { return Launch(layer); };
    return prepared;
  }

 private:
  // Enough for every multiprocessor to have work many times over.
  int SplitsMax() const {
    constexpr int64_t kPerMultiprocessor = 32;
    constexpr int64_t kTokensMin = 64;
    const int64_t wanted = kPerMultiprocessor * bench_.gpu().info().num_multiprocessors;
    return static_cast<int>(std::clamp<int64_t>(
        wanted / case_.num_tasks(), 1, std::max<int64_t>(case_.tokens_read() / kTokensMin, 1)));
  }

  const std::byte* Head(int layer, int64_t task) const {
    return data_ + layer * case_.layer_bytes() + task * case_.head_bytes();
  }

  // Chunks in any order, as a pool hands them out.
  std::vector<KvRange> Ranges(const std::byte* head) {
    std::vector<int64_t> chunks(static_cast<size_t>(case_.tokens / kChunkTokens));
    std::iota(chunks.begin(), chunks.end(), int64_t{0});
    std::shuffle(chunks.begin(), chunks.end(), engine_);
    std::vector<KvRange> ranges;
    for (const int64_t chunk : chunks) {
      const std::byte* const keys = head + chunk * kChunkBytes;
      ranges.push_back({.keys = keys,
                        .values = keys + kChunkTokens * kRowBytes,
                        .num_tokens = kChunkTokens,
                        .position_begin = static_cast<int64_t>(ranges.size()) * kChunkTokens});
    }
    return ranges;
  }

  // In the order of their addresses.
  std::vector<TokenRow> Rows(const std::byte* head) {
    std::vector<int64_t> all(static_cast<size_t>(case_.tokens)), chosen;
    std::iota(all.begin(), all.end(), int64_t{0});
    std::sample(all.begin(), all.end(), std::back_inserter(chosen), case_.tokens_read(), engine_);
    std::vector<TokenRow> rows;
    for (const int64_t token : chosen) {
      const std::byte* const key =
          head + token / kChunkTokens * kChunkBytes + token % kChunkTokens * kRowBytes;
      rows.push_back({key, key + kChunkTokens * kRowBytes});
    }
    return rows;
  }

  absl::Status AddLayer(int layer, const float* queries, DeviceArena& arena) {
    std::vector<KvRange> ranges;
    std::vector<TokenRow> rows;
    for (int64_t task = 0; task < case_.num_tasks(); ++task) {
      if (case_.sparse) {
        const std::vector<TokenRow> more = Rows(Head(layer, task));
        rows.insert(rows.end(), more.begin(), more.end());
      } else {
        const std::vector<KvRange> more = Ranges(Head(layer, task));
        ranges.insert(ranges.end(), more.begin(), more.end());
      }
    }
    const int64_t num_ranges = case_.sparse ? 0 : case_.tokens / kChunkTokens;
    std::vector<int64_t> begins(static_cast<size_t>(num_ranges + 1));
    for (int64_t i = 0; i <= num_ranges; ++i) begins[i] = i * kChunkTokens;
    WAVEKV_ASSIGN_OR_RETURN(const KvRange* const device_ranges, arena.Upload(ranges));
    WAVEKV_ASSIGN_OR_RETURN(const int64_t* const device_begins, arena.Upload(begins));
    WAVEKV_ASSIGN_OR_RETURN(const TokenRow* const device_rows, arena.Upload(rows));
    WAVEKV_ASSIGN_OR_RETURN(const int64_t* const num_rows,
                            arena.Upload(std::vector<int64_t>{case_.tokens_read()}));
    if (layer == 0) {
      ranges_ = std::move(ranges);
      rows_ = std::move(rows);
    }
    tasks_.emplace_back();
    for (int64_t task = 0; task < case_.num_tasks(); ++task) {
      tasks_.back().push_back(
          {.queries = queries + task * kGroup * kHeadDim,
           .num_queries = kGroup,
           .ranges = case_.sparse ? nullptr : device_ranges + task * num_ranges,
           .range_begins = device_begins,
           .num_ranges = num_ranges,
           .rows = case_.sparse ? device_rows + task * case_.tokens_read() : nullptr,
           .num_rows = case_.sparse ? num_rows : nullptr});
    }
    return absl::OkStatus();
  }

  // The tasks for so many splits, on the device.
  absl::Status SetSplits(int num_splits, DeviceArena& arena) {
    num_splits_ = num_splits;
    std::vector<AttentionState> states;
    std::vector<MergeStatesTask> merges;
    for (int64_t i = 0; i < case_.num_tasks() * num_splits; ++i) {
      states.push_back({split_output_ + i * kGroup * kHeadDim, split_lse_ + i * kGroup});
    }
    WAVEKV_ASSIGN_OR_RETURN(const AttentionState* const device_states, arena.Upload(states));
    for (int64_t task = 0; task < case_.num_tasks(); ++task) {
      MergeStatesTask merge;
      merge.states =
          absl::MakeConstSpan(device_states + task * num_splits, static_cast<size_t>(num_splits));
      merge.num_queries = kGroup;
      merge.head_dim_v = kHeadDim;
      merge.output = output_ + task * kGroup * kHeadDim;
      merge.lse = lse_ + task * kGroup;
      merges.push_back(merge);
    }
    WAVEKV_ASSIGN_OR_RETURN(merges_, arena.Upload(merges));
    device_tasks_.clear();
    for (std::vector<GpuAttendTask>& tasks : tasks_) {
      for (int64_t task = 0; task < case_.num_tasks(); ++task) {
        tasks[task].output = num_splits == 1
                                 ? merges[task].output
                                 : split_output_ + task * num_splits * kGroup * kHeadDim;
        tasks[task].lse =
            num_splits == 1 ? merges[task].lse : split_lse_ + task * num_splits * kGroup;
      }
      WAVEKV_ASSIGN_OR_RETURN(const GpuAttendTask* const device, arena.Upload(tasks));
      device_tasks_.push_back(device);
    }
    return absl::OkStatus();
  }

  absl::Status Launch(int layer) {
    TaskBounds bounds;
    bounds.shape = {kHeadDim, kHeadDim, DType::kBFloat16};
    bounds.num_queries = kGroup;
    WAVEKV_RETURN_IF_ERROR(bench_.operations().attend_rows(
        {device_tasks_[layer], case_.num_tasks()}, bounds, num_splits_, bench_.stream()));
    if (num_splits_ == 1) return absl::OkStatus();
    return bench_.operations().merge_states({merges_, case_.num_tasks()}, bounds, bench_.stream());
  }

  absl::Status ChooseSplits(DeviceArena& arena) {
    constexpr int kTries = 3;
    int best = 1;
    double best_seconds = std::numeric_limits<double>::infinity();
    for (int splits = 1; splits <= SplitsMax(); splits *= 2) {
      DeviceArena of_try = bench_.MakeArena();
      WAVEKV_RETURN_IF_ERROR(SetSplits(splits, of_try));
      for (int i = 0; i < kTries; ++i) {
        WAVEKV_ASSIGN_OR_RETURN(const double seconds, bench_.SecondsOf([this]() -> absl::Status {
          for (int layer = 0; layer < num_layers_; ++layer) WAVEKV_RETURN_IF_ERROR(Launch(layer));
          return absl::OkStatus();
        }));
        if (seconds < best_seconds) {
          best_seconds = seconds;
          best = splits;
        }
      }
    }
    return SetSplits(best, arena);
  }

  // Compares a task of layer 0 with double precision.
  absl::Status Check(int64_t task) {
    WAVEKV_RETURN_IF_ERROR(Launch(0));
    WAVEKV_ASSIGN_OR_RETURN(const std::vector<float> output,
                            bench_.Download(output_ + task * kGroup * kHeadDim, kGroup * kHeadDim));
    WAVEKV_ASSIGN_OR_RETURN(const std::vector<float> lse,
                            bench_.Download(lse_ + task * kGroup, kGroup));
    const std::byte* const head = Head(0, task);
    WAVEKV_ASSIGN_OR_RETURN(
        const std::vector<uint16_t> bits,
        bench_.Download(reinterpret_cast<const uint16_t*>(head), case_.head_bytes() / 2));
    testing::NaiveAttentionInput input;
    input.head_dim_k = input.head_dim_v = kHeadDim;
    const auto query = queries_.begin() + task * kGroup * kHeadDim;
    input.queries.assign(query, query + kGroup * kHeadDim);
    const auto add = [&](const std::byte* key, const std::byte* value, int64_t num_tokens) {
      for (int64_t i = 0; i < num_tokens * kHeadDim; ++i) {
        input.keys.push_back(BFloat16ToFloat32(bits[(key - head) / 2 + i]));
        input.values.push_back(BFloat16ToFloat32(bits[(value - head) / 2 + i]));
      }
    };
    if (case_.sparse) {
      for (int64_t i = 0; i < case_.tokens_read(); ++i) {
        const TokenRow& row = rows_[task * case_.tokens_read() + i];
        add(row.key, row.value, 1);
      }
    } else {
      const int64_t num_ranges = case_.tokens / kChunkTokens;
      for (int64_t i = 0; i < num_ranges; ++i) {
        const KvRange& range = ranges_[task * num_ranges + i];
        add(range.keys, range.values, range.num_tokens);
      }
    }
    const testing::NaiveAttentionState expected = testing::NaiveAttention(input);
    constexpr double kTolerance = 0.01;  // of the output's length; and of lse, absolute
    for (int q = 0; q < kGroup; ++q) {
      double error = 0.0, length = 0.0;
      for (int d = q * kHeadDim; d < (q + 1) * kHeadDim; ++d) {
        error += (output[d] - expected.output[d]) * (output[d] - expected.output[d]);
        length += expected.output[d] * expected.output[d];
      }
      // Written so that NaN fails.
      if (!(std::sqrt(error) <= kTolerance * std::sqrt(length)) ||
          !(std::fabs(lse[q] - expected.lse[q]) <= kTolerance)) {
        return absl::InternalError(
            absl::StrCat("task ", task, " query ", q, ": the output's relative error is ",
                         std::sqrt(error / length), ", lse ", lse[q], " for ", expected.lse[q]));
      }
    }
    return absl::OkStatus();
  }

  DeviceBench& bench_;
  const Case case_;
  std::mt19937_64 engine_{2};
  int num_layers_ = 1;
  int num_splits_ = 1;
  const std::byte* data_ = nullptr;
  std::vector<float> queries_;   // [tasks, kGroup, kHeadDim], the same in all layers
  std::vector<KvRange> ranges_;  // of layer 0: [tasks, chunks]
  std::vector<TokenRow> rows_;   // of layer 0: [tasks, tokens_read]
  std::vector<std::vector<GpuAttendTask>> tasks_;  // [layers][tasks]
  // On the device.
  std::vector<const GpuAttendTask*> device_tasks_;
  const MergeStatesTask* merges_ = nullptr;
  float* split_output_ = nullptr;  // [tasks, splits, kGroup, kHeadDim]
  float* split_lse_ = nullptr;
  float* output_ = nullptr;  // [tasks, kGroup, kHeadDim]
  float* lse_ = nullptr;
};

}  // namespace

void RegisterAttention(DeviceBench& bench, const std::vector<int64_t>& batches,
                       const std::vector<int64_t>& tokens) {
  for (const bool sparse : {false, true}) {
    for (const int64_t batch : batches) {
      for (const int64_t requested : tokens) {
        Case setup;
        setup.batch = batch;
        setup.tokens = (requested + kChunkTokens - 1) / kChunkTokens * kChunkTokens;
        setup.sparse = sparse;
        if (setup.layer_bytes() > bench.data_bytes_max()) continue;
        const std::string name = absl::StrCat(sparse ? "attend_sparse" : "attend_dense",
                                              "/batch:", batch, "/tokens:", setup.tokens,
                                              sparse ? absl::StrCat("/percent:", kPercent) : "");
        bench.Register(
            name, [&bench, setup](DeviceArena& arena) -> absl::StatusOr<DeviceBench::Prepared> {
              auto layers = std::make_shared<AttentionLayers>(bench, setup);
              WAVEKV_ASSIGN_OR_RETURN(DeviceBench::Prepared prepared, layers->Prepare(arena));
              prepared.owner = std::move(layers);
              return prepared;
            });
      }
    }
  }
}

}  // namespace wavekv::bench
