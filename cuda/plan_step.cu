// A block a unit plans it; a warp a query loads it. A few bytes for each cluster.
#include "cuda/kernel.h"
#include "cuda/plan_step.h"
#include "cuda/step_parts.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

// Of a unit, the same for all threads.
WAVEKV_DEVICE StepUnit LocateUnit(const StepTables& tables, const StepOptions& options,
                                  const StepBounds& bounds, int64_t number) {
  StepUnit unit;
  unit.sequence = FindLast(bounds.num_sequences, number,
                           [&](int64_t i) { return tables.sequences[i].first_unit; });
  const StepSequence& sequence = tables.sequences[unit.sequence];
  const int64_t local = number - sequence.first_unit;
  unit.kv_head = local % bounds.num_kv_heads;
  const int64_t first = local / bounds.num_kv_heads * bounds.tile_rows;
  unit.row = sequence.first_row + first;
  unit.num_rows = Min(int64_t{bounds.tile_rows}, sequence.rows_here - first);
  unit.first_state =
      sequence.first_state + (unit.kv_head * sequence.rows_here + first) * bounds.group;
  unit.visible_end = VisibleEnd(sequence, options.causal, unit.row + unit.num_rows - 1);
  return unit;
}

constexpr int kPlanThreads = 256;

// Adds the segments that are answered by zones to the unit, and lists their indexes.
WAVEKV_DEVICE void ListSegments(const StepTables& tables, const StepOptions& options,
                                const StepBounds& bounds, const StepBuffers& buffers,
                                int64_t number, int64_t* scratch, StepUnit& unit) {
  const StepSequence& sequence = tables.sequences[unit.sequence];
  const ClusterIndex** const indexes = buffers.indexes + number * bounds.segments;
  uint32_t* const first_clusters = buffers.first_clusters + number * (bounds.segments + 1);
  uint32_t* const first_supers = buffers.first_supers + number * (bounds.segments + 1);
  for (int64_t first = 0; first < sequence.num_segments; first += BlockThreads()) {
    const int64_t i = first + ThreadIndex();
    const ClusterIndex* index = nullptr;
    if (i < sequence.num_segments && !options.exact) {
      const int64_t segment = sequence.first_segment + i;
      if (tables.segments[segment].end <= unit.visible_end) {
        index = tables.indexes[segment * bounds.num_kv_heads + unit.kv_head];
      }
    }
    const bool counts = index != nullptr;
    int64_t num_indexes, num_clusters, num_supers, num_tokens;
    const int64_t at =
        unit.num_indexes + ExclusiveSumOfBlock(int64_t{counts}, scratch, &num_indexes);
    const int64_t cluster =
        unit.num_clusters +
        ExclusiveSumOfBlock(counts ? index->num_clusters : int64_t{0}, scratch, &num_clusters);
    const int64_t super =
        unit.num_supers +
        ExclusiveSumOfBlock(counts ? index->num_supers : int64_t{0}, scratch, &num_supers);
    ExclusiveSumOfBlock(counts ? index->num_tokens : int64_t{0}, scratch, &num_tokens);
    if (counts && at < bounds.segments) {
      indexes[at] = index;
      first_clusters[at] = static_cast<uint32_t>(cluster);
      first_supers[at] = static_cast<uint32_t>(super);
    }
    unit.num_indexes += num_indexes;
    unit.num_clusters += num_clusters;
    unit.num_supers += num_supers;
    unit.sealed_tokens += num_tokens;
  }
}

// Lists what is attended range by range: chunks, and sealed segments that are not answered by
// zones.
WAVEKV_DEVICE int64_t ListRanges(const StepTables& tables, const StepOptions& options,
                                 const StepBounds& bounds, const StepBuffers& buffers,
                                 int64_t number, const StepUnit& unit, int64_t* scratch,
                                 int64_t* num_range_tokens) {
  const StepSequence& sequence = tables.sequences[unit.sequence];
  KvRange* const ranges = buffers.ranges + number * bounds.ranges;
  int64_t* const begins = buffers.range_begins + number * (bounds.ranges + 1);
  const KvShape& shape = bounds.task.shape;
  const int64_t key_bytes = shape.head_dim_k * DTypeBytes(shape.dtype);
  const int64_t value_bytes = shape.head_dim_v * DTypeBytes(shape.dtype);
  int64_t num_ranges = 0, num_tokens = 0;
  for (int64_t first = 0; first < sequence.num_chunks; first += BlockThreads()) {
    const int64_t i = first + ThreadIndex();
    StepChunk chunk;
    int64_t tokens = 0;
    if (i < sequence.num_chunks) {
      chunk = tables.chunks[sequence.first_chunk + i];
      tokens = Max(Min(chunk.capacity, unit.visible_end - chunk.position_begin), int64_t{0});
    }
    int64_t ranges_here, tokens_here;
    const int64_t at = num_ranges + ExclusiveSumOfBlock(int64_t{tokens > 0}, scratch, &ranges_here);
    const int64_t begin = num_tokens + ExclusiveSumOfBlock(tokens, scratch, &tokens_here);
    if (tokens > 0 && at < bounds.ranges) {
      const std::byte* keys =
          chunk.rows + unit.kv_head * chunk.capacity * (key_bytes + value_bytes);
      ranges[at] = {keys, keys + chunk.capacity * key_bytes, tokens, chunk.position_begin, nullptr};
      begins[at] = begin;
    }
    num_ranges += ranges_here;
    num_tokens += tokens_here;
  }
  for (int64_t i = 0; i < sequence.num_segments; ++i) {
    const StepSegment& segment = tables.segments[sequence.first_segment + i];
    if (!options.exact && segment.end <= unit.visible_end) continue;
    if (segment.begin >= unit.visible_end) continue;
    const ClusterIndex& index =
        *tables.indexes[(sequence.first_segment + i) * bounds.num_kv_heads + unit.kv_head];
    for (int64_t c = ThreadIndex(); c < index.num_clusters; c += BlockThreads()) {
      const int64_t at = num_ranges + c;
      if (at >= bounds.ranges) continue;
      const int64_t offset = index.offsets[c], size = index.offsets[c + 1] - offset;
      const std::byte* keys = index.rows + offset * (key_bytes + value_bytes);
      ranges[at] = {keys, keys + size * key_bytes, size, index.position_begin,
                    index.positions + offset};
      begins[at] = num_tokens + offset;
    }
    num_ranges += index.num_clusters;
    num_tokens += index.num_tokens;
  }
  if (ThreadIndex() == 0 && num_ranges <= bounds.ranges) begins[num_ranges] = num_tokens;
  *num_range_tokens = num_tokens;
  return num_ranges;
}

WAVEKV_DEVICE SelectClustersTask SelectTask(const float* scores, int64_t stride, int num_queries,
                                            const uint32_t* sizes, int64_t count,
                                            float* probabilities, Zone* zones, uint32_t* retrieved,
                                            int64_t* num_retrieved) {
  SelectClustersTask select;
  select.scores = scores;
  select.stride = stride;
  select.num_queries = count == 0 ? 0 : num_queries;
  select.sizes = sizes;
  select.num_clusters = count;
  select.ranked = false;
  select.probabilities = probabilities;
  select.zones = zones;
  select.retrieved = retrieved;
  select.num_retrieved = num_retrieved;
  return select;
}

// The tasks of one index of a unit, or those that are skipped.
WAVEKV_DEVICE void WriteIndexTasks(const StepOptions& options, const StepBounds& bounds,
                                   const StepBuffers& buffers, int64_t number, const StepUnit& unit,
                                   int64_t i) {
  const int64_t at = number * bounds.segments + i;
  const bool counts = i < unit.num_indexes;
  ScoreClustersTask score;
  EstimateClustersTask estimate;
  ScoreTokensTask tokens;
  buffers.estimate[at] = estimate;
  buffers.score_tokens[at] = tokens;
  if (options.target_error > 0.0) {
    EstimateClustersTask coarse;
    if (counts) {
      const int64_t first =
          number * bounds.clusters + buffers.first_clusters[number * (bounds.segments + 1) + i];
      coarse.queries = buffers.queries + unit.first_state * bounds.task.shape.head_dim_k;
      coarse.num_queries = bounds.group;
      coarse.index = buffers.indexes[at];
      coarse.log_masses = buffers.log_masses + number * bounds.group * bounds.clusters +
                          buffers.first_clusters[number * (bounds.segments + 1) + i];
      coarse.log_masses_stride = bounds.clusters;
      coarse.mass = options.mass;
      coarse.zones = buffers.zones + first;
      coarse.output = buffers.estimated_outputs + at * bounds.group * bounds.task.shape.head_dim_v;
      coarse.lse = buffers.estimated_lses + at * bounds.group;
    }
    buffers.coarse[at] = coarse;
  }
  if (counts) {
    const int64_t cluster = buffers.first_clusters[number * (bounds.segments + 1) + i];
    const int64_t super = buffers.first_supers[number * (bounds.segments + 1) + i];
    score.queries = buffers.rotated + unit.first_state * bounds.task.shape.head_dim_k;
    score.num_queries = bounds.group;
    score.index = buffers.indexes[at];
    score.log_masses = buffers.log_masses + number * bounds.group * bounds.clusters + cluster;
    score.rank_scores = buffers.rank_scores + number * bounds.group * bounds.clusters + cluster;
    score.stride = bounds.clusters;
    score.mass = options.mass;
    score.ranking = options.ranking;
    if (!options.opens_all) {
      const int64_t first_super = number * bounds.group * bounds.supers + super;
      score.super_zones = buffers.super_zones + number * bounds.supers + super;
      score.super_log_masses = buffers.super_log_masses + first_super;
      score.super_stride = bounds.supers;
    }
  }
  buffers.score_clusters[at] = score;
  if (options.opens_all) return;
  ScoreSupersTask supers;
  if (counts) {
    const int64_t super = number * bounds.group * bounds.supers +
                          buffers.first_supers[number * (bounds.segments + 1) + i];
    supers.queries = score.queries;
    supers.num_queries = bounds.group;
    supers.index = score.index;
    supers.mass = options.mass;
    supers.ranking = options.ranking;
    supers.log_masses = buffers.super_log_masses + super;
    supers.rank_scores = buffers.super_scores + super;
    supers.stride = bounds.supers;
  }
  buffers.score_supers[at] = supers;
}

WAVEKV_DEVICE void WriteUnitTasks(const StepOptions& options, const StepBounds& bounds,
                                  const StepBuffers& buffers, int64_t number,
                                  const StepSequence& sequence, int64_t num_ranges) {
  StepUnit& unit = buffers.units[number];
  const int64_t first = number * bounds.clusters;
  SelectClustersTask select =
      SelectTask(buffers.rank_scores + first * bounds.group, bounds.clusters, bounds.group,
                 buffers.sizes + first, unit.num_clusters, buffers.probabilities + first,
                 buffers.zones + first, buffers.retrieved + first, &unit.num_selected);
  select.token_budget = SelectedTokens(options, unit.sealed_tokens);
  select.last_zone = options.last_zone;
  if (options.zones == Zones::kSketch) {
    select.first_zone = Zone::kSketch;
  } else if (unit.sealed_tokens > 0) {
    // A budget of tokens is worth as many clusters as hold that share of them on average.
    const double share = static_cast<double>(Resolve(options.estimation, unit.sealed_tokens)) /
                         static_cast<double>(unit.sealed_tokens);
    const double wanted = share * static_cast<double>(unit.num_clusters);
    select.num_estimation = static_cast<int64_t>(wanted);
    if (static_cast<double>(select.num_estimation) < wanted) ++select.num_estimation;
  }
  if (options.target_error > 0.0) {
    // Shares of target_error squared, as in api/rank_units.cc.
    constexpr double kClusterRisk = 0.4, kTokenRisk = 0.4;
    const double error2 = options.target_error * options.target_error;
    RiskLimit risk;
    risk.log_masses = buffers.log_masses + first * bounds.group;
    risk.stride = bounds.clusters;
    risk.lses = buffers.coarse_lses + unit.first_state;
    risk.inverse_squares = buffers.inverse_squares + unit.first_state;
    risk.variances = buffers.cluster_variances + first;
    risk.hidden_variances = buffers.hidden_variances + first;
    risk.key_spreads = buffers.key_spreads + first;
    risk.logit_spreads = buffers.logit_spreads + unit.first_state;
    risk.limit = kClusterRisk * error2;
    buffers.cluster_risks[number] = risk;
    select.risk = buffers.cluster_risks + number;
    if (options.zones == Zones::kSketch) {
      RiskLimit tokens;
      // By rank scores: what a code may have underestimated.
      tokens.log_masses = buffers.token_scores + number * bounds.group * bounds.sketch_tokens;
      tokens.stride = bounds.sketch_tokens;
      tokens.lses = risk.lses;
      tokens.inverse_squares = risk.inverse_squares;
      tokens.variances = buffers.token_variances + number * bounds.sketch_tokens;
      tokens.limit = kTokenRisk * error2;
      buffers.token_risks[number] = tokens;
    }
  }
  buffers.select_clusters[number] = select;
  buffers.select_tokens[number] = SelectTokensTask();
  if (!options.opens_all) {
    const int64_t super = number * bounds.supers;
    // The count is overwritten when clusters are selected.
    SelectClustersTask open = SelectTask(
        buffers.super_scores + super * bounds.group, bounds.supers, bounds.group,
        buffers.super_sizes + super, unit.num_supers, buffers.super_probabilities + super,
        buffers.super_zones + super, buffers.super_retrieved + super, &unit.num_selected);
    int64_t answered = SelectedTokens(options, unit.sealed_tokens);
    if (options.zones != Zones::kSketch) {
      // Clusters differ in size: so many of them may hold more than the budget says.
      answered =
          Min(unit.sealed_tokens, answered + 2 * Resolve(options.estimation, unit.sealed_tokens));
    }
    open.token_budget = Max(Resolve(options.open, unit.sealed_tokens), answered);
    open.first_zone = Zone::kSketch;
    buffers.select_supers[number] = open;
  }

  const KvShape& shape = bounds.task.shape;
  GpuAttendTask attend;
  attend.queries = buffers.queries + unit.first_state * shape.head_dim_k;
  attend.num_queries = static_cast<int>(unit.num_rows) * bounds.group;
  const bool masked = options.causal && (unit.num_rows > 1 || unit.visible_end < sequence.length);
  if (masked) attend.visible_end = buffers.visible_ends + unit.first_state;
  attend.ranges = buffers.ranges + number * bounds.ranges;
  attend.range_begins = buffers.range_begins + number * (bounds.ranges + 1);
  attend.num_ranges = num_ranges;
  const int64_t part = number * bounds.num_exact_states() * bounds.task.num_queries;
  attend.output = buffers.exact_outputs + part * shape.head_dim_v;
  attend.lse = buffers.exact_lses + part;
  if (bounds.steady_splits > 0) {
    buffers.attend_steady[number] = attend;
    attend.num_ranges = 0;
    const int64_t steady = int64_t{bounds.steady_splits} * attend.num_queries;
    attend.output += steady * shape.head_dim_v;
    attend.lse += steady;
  }
  if (!options.exact) {
    attend.rows = buffers.rows + number * bounds.chosen;
    attend.num_rows = &unit.num_listed;
  }
  buffers.attend[number] = attend;
}

WAVEKV_KERNEL PlanKernel(StepTables tables, StepOptions options, StepBounds bounds,
                         StepBuffers buffers, StepFlags* flags) {
  SharedMemory shared;
  int64_t* const scratch = shared.Take<int64_t>(33);
  const int64_t number = blockIdx.x;
  StepUnit unit = LocateUnit(tables, options, bounds, number);
  const StepSequence& sequence = tables.sequences[unit.sequence];
  ListSegments(tables, options, bounds, buffers, number, scratch, unit);
  int64_t num_range_tokens;
  int64_t num_ranges =
      ListRanges(tables, options, bounds, buffers, number, unit, scratch, &num_range_tokens);
  SyncBlock();  // the lists of the whole block
  if (unit.num_indexes > bounds.segments || unit.num_clusters > bounds.clusters ||
      unit.num_supers > bounds.supers || num_ranges > bounds.ranges) {
    if (ThreadIndex() == 0) flags->overflow = 1;
    unit.num_indexes = unit.num_clusters = unit.num_supers = unit.sealed_tokens = num_ranges = 0;
  }
  if (ThreadIndex() == 0) {
    buffers.units[number] = unit;
    buffers.first_clusters[number * (bounds.segments + 1) + unit.num_indexes] =
        static_cast<uint32_t>(unit.num_clusters);
    buffers.first_supers[number * (bounds.segments + 1) + unit.num_indexes] =
        static_cast<uint32_t>(unit.num_supers);
    WriteUnitTasks(options, bounds, buffers, number, sequence, num_ranges);
    if (number == 0) {
      *buffers.rotate = {buffers.queries, buffers.rotated, bounds.num_states,
                         bounds.task.shape.head_dim_k};
    }
  }
  for (int64_t i = ThreadIndex(); i < bounds.segments; i += BlockThreads()) {
    WriteIndexTasks(options, bounds, buffers, number, unit, i);
  }
  for (int64_t q = ThreadIndex(); q < unit.num_rows * bounds.group; q += BlockThreads()) {
    buffers.visible_ends[unit.first_state + q] =
        VisibleEnd(sequence, options.causal, unit.row + q / bounds.group);
  }
  for (int64_t i = 0; i < unit.num_indexes; ++i) {
    const ClusterIndex& index = *buffers.indexes[number * bounds.segments + i];
    uint32_t* const sizes = buffers.sizes + number * bounds.clusters +
                            buffers.first_clusters[number * (bounds.segments + 1) + i];
    for (int64_t c = ThreadIndex(); c < index.num_clusters; c += BlockThreads()) {
      sizes[c] = index.offsets[c + 1] - index.offsets[c];
    }
    if (options.opens_all) continue;
    uint32_t* const super_sizes = buffers.super_sizes + number * bounds.supers +
                                  buffers.first_supers[number * (bounds.segments + 1) + i];
    for (int64_t s = ThreadIndex(); s < index.num_supers; s += BlockThreads()) {
      super_sizes[s] =
          index.offsets[index.super_offsets[s + 1]] - index.offsets[index.super_offsets[s]];
    }
  }
}

constexpr int kLoadThreads = 256;

// A warp a query.
WAVEKV_KERNEL LoadQueriesKernel(StepTables tables, StepOptions options, StepBounds bounds,
                                StepQueries queries, StepBuffers buffers, StepFlags* flags) {
  const int64_t state = int64_t{blockIdx.x} * BlockWarps() + WarpIndex();
  if (state >= bounds.num_states) return;
  const StepSequence& sequence = tables.sequences[FindLast(
      bounds.num_sequences, state, [&](int64_t i) { return tables.sequences[i].first_state; })];
  const int64_t local = state - sequence.first_state;
  const int64_t per_head = sequence.rows_here * bounds.group;
  const int64_t row = sequence.batch_row + sequence.first_row + local % per_head / bounds.group;
  const int64_t head = local / per_head * bounds.group + local % bounds.group;
  const int64_t from = row * queries.row_stride + head * queries.head_stride;
  const int dim = bounds.task.shape.head_dim_k;
  bool bad = false;
  for (int d = LaneIndex(); d < dim; d += kWarp) {
    float x = LoadAs(queries.data, queries.dtype, from + d) * options.softmax_scale;
    if (!IsFinite(x)) {
      bad = true;
      x = 0.0f;
    }
    buffers.queries[state * dim + d] = x;
  }
  if (bad) flags->bad_queries = 1;
}

}  // namespace

absl::Status PlanStep(const StepTables& tables, const StepOptions& options,
                      const StepBounds& bounds, const StepBuffers& buffers, StepFlags* flags,
                      GpuStream stream) {
  return Launch("PlanStep", PlanKernel, {static_cast<unsigned>(bounds.num_units)}, kPlanThreads,
                SharedSize().Add<int64_t>(33).bytes(), stream, tables, options, bounds, buffers,
                flags);
}

absl::Status LoadQueries(const StepTables& tables, const StepOptions& options,
                         const StepBounds& bounds, const StepQueries& queries,
                         const StepBuffers& buffers, StepFlags* flags, GpuStream stream) {
  return Launch("LoadQueries", LoadQueriesKernel, {Blocks(bounds.num_states, kLoadThreads / kWarp)},
                kLoadThreads, 0, stream, tables, options, bounds, queries, buffers, flags);
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
