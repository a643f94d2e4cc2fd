// A block a unit, or a block for each segment of a unit; a few bytes for each cluster and each
// token that is read.
#include "cuda/kernel.h"
#include "cuda/list_tokens.h"
#include "cuda/step_parts.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr int kListThreads = 1024;

// Numbers the clusters of the sketch zone and their tokens.
WAVEKV_KERNEL ListSketchKernel(StepOptions options, StepBounds bounds, StepBuffers buffers,
                               StepFlags* flags) {
  SharedMemory shared;
  uint32_t* const scratch = shared.Take<uint32_t>(33);
  const int64_t number = blockIdx.x;
  StepUnit& unit = buffers.units[number];
  const int64_t count = unit.num_clusters;
  if (count == 0) return;
  const Zone* const zones = buffers.zones + number * bounds.clusters;
  const uint32_t* const sizes = buffers.sizes + number * bounds.clusters;
  const uint32_t* const first_clusters = buffers.first_clusters + number * (bounds.segments + 1);
  uint32_t* const sketch_clusters = buffers.sketch_clusters + number * bounds.clusters;
  uint32_t* const sketch_before = buffers.sketch_before + number * (bounds.clusters + 1);
  uint32_t* const tokens_before = buffers.tokens_before + number * (bounds.clusters + 1);

  const int64_t per_thread = (count + BlockThreads() - 1) / BlockThreads();
  const int64_t first = Min(count, ThreadIndex() * per_thread);
  const int64_t last = Min(count, first + per_thread);
  uint32_t clusters = 0, tokens = 0;
  for (int64_t c = first; c < last; ++c) {
    if (zones[c] != Zone::kSketch) continue;
    ++clusters;
    tokens += sizes[c];
  }
  uint32_t all_clusters, all_tokens;
  clusters = ExclusiveSumOfBlock(clusters, scratch, &all_clusters);
  tokens = ExclusiveSumOfBlock(tokens, scratch, &all_tokens);
  const bool overflows = all_tokens > bounds.sketch_tokens;
  int64_t segment =
      FindLast(unit.num_indexes, first, [&](int64_t i) { return int64_t{first_clusters[i]}; });
  for (int64_t c = first; c < last; ++c) {
    while (c >= first_clusters[segment + 1]) ++segment;
    sketch_before[c] = clusters;
    tokens_before[c] = tokens;
    if (zones[c] != Zone::kSketch) continue;
    sketch_clusters[clusters++] = static_cast<uint32_t>(c - first_clusters[segment]);
    tokens += sizes[c];
  }
  if (ThreadIndex() == 0) {
    sketch_before[count] = all_clusters;
    tokens_before[count] = all_tokens;
  }
  const int64_t num_indexes = unit.num_indexes;
  SyncBlock();
  if (overflows) {
    if (ThreadIndex() == 0) {
      flags->overflow = 1;
      unit.num_indexes = 0;
    }
    return;
  }
  for (int64_t i = ThreadIndex(); i < num_indexes; i += BlockThreads()) {
    const uint32_t begin = first_clusters[i], end = first_clusters[i + 1];
    ScoreTokensTask task;
    task.queries = buffers.rotated + unit.first_state * bounds.task.shape.head_dim_k;
    task.num_queries = bounds.group;
    task.index = buffers.indexes[number * bounds.segments + i];
    task.log_masses = buffers.log_masses + number * bounds.group * bounds.clusters + begin;
    task.log_masses_stride = bounds.clusters;
    task.mass = options.mass;
    task.clusters = sketch_clusters + sketch_before[begin];
    task.num_clusters = sketch_before[end] - sketch_before[begin];
    const int64_t at = number * bounds.group * bounds.sketch_tokens + tokens_before[begin];
    task.logits = buffers.token_logits + at;
    task.rank_scores = buffers.token_scores + at;
    task.stride = bounds.sketch_tokens;
    if (task.num_clusters == 0) task.num_queries = 0;
    buffers.score_tokens[number * bounds.segments + i] = task;
  }
  if (ThreadIndex() != 0) return;
  unit.num_sketch_tokens = all_tokens;
  SelectTokensTask select;
  select.rank_scores = buffers.token_scores + number * bounds.group * bounds.sketch_tokens;
  select.stride = bounds.sketch_tokens;
  select.num_queries = all_tokens == 0 ? 0 : bounds.group;
  select.num_tokens = all_tokens;
  select.log_masses = buffers.log_masses + number * bounds.group * bounds.clusters;
  select.log_masses_stride = bounds.clusters;
  select.zones = zones;
  select.num_clusters = count;
  select.token_budget = Resolve(options.retrieval, unit.sealed_tokens);
  select.probabilities = buffers.token_probabilities + number * bounds.sketch_tokens;
  select.chosen = buffers.chosen + number * bounds.sketch_tokens;
  select.num_chosen = &unit.num_chosen;
  if (options.target_error > 0.0) select.risk = buffers.token_risks + number;
  buffers.select_tokens[number] = select;
}

constexpr int kChosenThreads = 256;

// How many tokens of each cluster are read one by one. A cluster of which more than half was chosen
// is read whole: its few others would be answered by what is left of a rounded mean.
WAVEKV_KERNEL CountChosenKernel(StepBounds bounds, StepBuffers buffers) {
  SharedMemory shared;
  uint32_t* const scratch = shared.Take<uint32_t>(33);
  const int64_t number = blockIdx.x / bounds.segments, i = blockIdx.x % bounds.segments;
  if (i >= buffers.units[number].num_indexes) return;
  const uint32_t* const first_clusters = buffers.first_clusters + number * (bounds.segments + 1);
  const int64_t first = number * bounds.clusters;
  uint32_t of_warp = 0;
  for (int64_t c = first_clusters[i] + WarpIndex(); c < first_clusters[i + 1]; c += BlockWarps()) {
    const uint32_t size = buffers.sizes[first + c];
    uint32_t listed = 0;
    if (buffers.zones[first + c] == Zone::kRetrieval) {
      listed = size;
    } else if (buffers.zones[first + c] == Zone::kSketch) {
      uint8_t* const chosen = buffers.chosen + number * bounds.sketch_tokens +
                              buffers.tokens_before[number * (bounds.clusters + 1) + c];
      for (uint32_t t = LaneIndex(); t < size; t += kWarp) listed += chosen[t] != 0;
      listed = SumOfWarp(listed);
      if (2 * listed > size) {
        for (uint32_t t = LaneIndex(); t < size; t += kWarp) chosen[t] = 1;
        listed = size;
      }
    }
    if (LaneIndex() == 0) buffers.listed[first + c] = listed;
    of_warp += listed;
  }
  const uint32_t total = SumOfBlock(LaneIndex() == 0 ? of_warp : 0u, scratch);
  if (ThreadIndex() == 0) buffers.segment_listed[number * bounds.segments + i] = total;
}

// Lists them, in the order of memory, and says what answers the others.
WAVEKV_KERNEL ListChosenKernel(StepOptions options, StepBounds bounds, StepBuffers buffers,
                               StepFlags* flags) {
  SharedMemory shared;
  uint32_t* const scratch = shared.Take<uint32_t>(33);
  uint32_t* const places = shared.Take<uint32_t>(kChosenThreads);
  const int64_t number = blockIdx.x / bounds.segments, i = blockIdx.x % bounds.segments;
  StepUnit& unit = buffers.units[number];
  if (i >= unit.num_indexes) {
    if (i == 0 && ThreadIndex() == 0) unit.num_listed = 0;
    return;
  }
  const uint32_t* const segment_listed = buffers.segment_listed + number * bounds.segments;
  uint32_t before = 0, all = 0;
  for (int64_t s = ThreadIndex(); s < unit.num_indexes; s += BlockThreads()) {
    all += segment_listed[s];
    before += s < i ? segment_listed[s] : 0;
  }
  before = SumOfBlock(before, scratch);
  all = SumOfBlock(all, scratch);
  const bool overflows = all > bounds.chosen;
  if (i == 0 && ThreadIndex() == 0) {
    unit.num_listed = overflows ? 0 : all;
    if (overflows) flags->overflow = 1;
  }
  if (overflows) return;

  const uint32_t* const first_clusters = buffers.first_clusters + number * (bounds.segments + 1);
  const uint32_t begin = first_clusters[i], end = first_clusters[i + 1];
  const int64_t first = number * bounds.clusters;
  const ClusterIndex& index = *buffers.indexes[number * bounds.segments + i];
  const int64_t key_bytes = index.key_row_bytes(), value_bytes = index.value_row_bytes();
  TokenRow* const rows = buffers.rows + number * bounds.chosen;
  const std::byte** const values = buffers.values + number * bounds.chosen;
  const uint8_t* const chosen = buffers.chosen + number * bounds.sketch_tokens;
  const uint32_t* const tokens_before = buffers.tokens_before + number * (bounds.clusters + 1);
  uint32_t next = before;
  for (uint32_t tile = begin; tile < end; tile += kChosenThreads) {
    const uint32_t mine = tile + ThreadIndex();
    uint32_t listed_here;
    const uint32_t place =
        ExclusiveSumOfBlock(mine < end ? buffers.listed[first + mine] : 0u, scratch, &listed_here);
    places[ThreadIndex()] = next + place;
    SyncBlock();
    for (uint32_t c = tile + WarpIndex(); c < Min(end, tile + kChosenThreads); c += BlockWarps()) {
      if (buffers.listed[first + c] == 0) continue;
      const uint32_t size = buffers.sizes[first + c];
      const bool whole = buffers.listed[first + c] == size;
      const int64_t offset = index.offsets[c - begin];
      const std::byte* const keys = index.rows + offset * (key_bytes + value_bytes);
      const std::byte* const first_value = keys + size * key_bytes;
      uint32_t at = places[c - tile];
      for (uint32_t t0 = 0; t0 < size; t0 += kWarp) {
        const uint32_t t = t0 + LaneIndex();
        const bool reads = t < size && (whole || chosen[tokens_before[c] + t] != 0);
        const uint32_t mask = Ballot(reads);
        if (reads) {
          const uint32_t to = at + PopCount(mask & ((1u << LaneIndex()) - 1));
          rows[to] = {keys + t * key_bytes, first_value + t * value_bytes};
          values[to] = first_value + t * value_bytes;
        }
        at += PopCount(mask);
      }
    }
    next += listed_here;
    SyncBlock();
  }

  if (ThreadIndex() != 0) return;
  const int64_t part = number * bounds.segments + i;
  EstimateClustersTask task;
  task.queries = buffers.queries + unit.first_state * bounds.task.shape.head_dim_k;
  task.num_queries = bounds.group;
  task.index = &index;
  task.log_masses = buffers.log_masses + number * bounds.group * bounds.clusters + begin;
  task.log_masses_stride = bounds.clusters;
  task.mass = options.mass;
  task.zones = buffers.zones + first + begin;
  if (options.zones == Zones::kSketch) {
    const int64_t at = number * bounds.group * bounds.sketch_tokens + tokens_before[begin];
    task.token_logits = buffers.token_logits + at;
    task.token_stride = bounds.sketch_tokens;
    task.chosen = chosen + tokens_before[begin];
    task.chosen_values = values + before;
  }
  task.output = buffers.estimated_outputs + part * bounds.group * bounds.task.shape.head_dim_v;
  task.lse = buffers.estimated_lses + part * bounds.group;
  task.missing_lse = buffers.missing_lses + part * bounds.group;
  task.value_variance = buffers.value_variances + part * bounds.group;
  task.num_value_means = buffers.num_value_means + part;
  task.num_super_value_means = buffers.num_super_value_means + part;
  buffers.estimate[part] = task;
}

// How much each token of the sketch zone may err.
WAVEKV_KERNEL MeasureTokensKernel(StepBounds bounds, StepBuffers buffers) {
  const int64_t number = blockIdx.x / bounds.segments, i = blockIdx.x % bounds.segments;
  if (i >= buffers.units[number].num_indexes) return;
  const ClusterIndex& index = *buffers.indexes[number * bounds.segments + i];
  const uint32_t begin = buffers.first_clusters[number * (bounds.segments + 1) + i];
  const uint32_t* const before = buffers.tokens_before + number * (bounds.clusters + 1) + begin;
  float* const variances = buffers.token_variances + number * bounds.sketch_tokens;
  for (int64_t c = WarpIndex(); c < index.num_clusters; c += BlockWarps()) {
    const float variance = Min(TokenVariance(index, c), kVarianceMax);
    for (uint32_t t = before[c] + LaneIndex(); t < before[c + 1]; t += kWarp) {
      variances[t] = variance;
    }
  }
}

}  // namespace

absl::Status ListSketch(const StepOptions& options, const StepBounds& bounds,
                        const StepBuffers& buffers, StepFlags* flags, GpuStream stream) {
  const absl::Status listed = Launch(
      "ListSketch", ListSketchKernel, {static_cast<unsigned>(bounds.num_units)}, kListThreads,
      SharedSize().Add<uint32_t>(33).bytes(), stream, options, bounds, buffers, flags);
  if (!listed.ok() || options.target_error == 0.0) return listed;
  return Launch("MeasureTokens", MeasureTokensKernel,
                {static_cast<unsigned>(bounds.num_units * bounds.segments)}, kChosenThreads, 0,
                stream, bounds, buffers);
}

absl::Status ListChosen(const StepOptions& options, const StepBounds& bounds,
                        const StepBuffers& buffers, StepFlags* flags, GpuStream stream) {
  const GridShape grid = {static_cast<unsigned>(bounds.num_units * bounds.segments)};
  const absl::Status counted =
      Launch("CountChosen", CountChosenKernel, grid, kChosenThreads,
             SharedSize().Add<uint32_t>(33).bytes(), stream, bounds, buffers);
  if (!counted.ok()) return counted;
  return Launch("ListChosen", ListChosenKernel, grid, kChosenThreads,
                SharedSize().Add<uint32_t>(33).Add<uint32_t>(kChosenThreads).bytes(), stream,
                options, bounds, buffers, flags);
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
