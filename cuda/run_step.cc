#include "cuda/run_step.h"

#include <algorithm>

#include "cuda/workspace_layout.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

TaskBounds WithItems(const StepBounds& bounds, int64_t num_items) {
  TaskBounds task = bounds.task;
  task.num_queries = bounds.group;
  task.num_items = num_items;
  return task;
}

int64_t ScratchBytes(const GpuOperations& operations, const StepOptions& options,
                     const StepBounds& bounds) {
  const int64_t units = bounds.num_units, parts = units * bounds.segments;
  int64_t bytes = units * operations.select_scratch_bytes(WithItems(bounds, bounds.clusters));
  if (options.zones == Zones::kSketch) {
    bytes = std::max(
        bytes, units * operations.select_scratch_bytes(WithItems(bounds, bounds.sketch_tokens)));
  }
  return std::max(
      bytes, parts * operations.estimate_scratch_bytes(WithItems(bounds, bounds.index_clusters)));
}

int64_t Place(const GpuOperations& operations, const StepOptions& options, const StepBounds& bounds,
              std::byte* workspace, StepBuffers& b) {
  const int64_t units = bounds.num_units, states = bounds.num_states, group = bounds.group;
  const int64_t queries = bounds.task.num_queries, splits = bounds.num_exact_states();
  const int dim_k = bounds.task.shape.head_dim_k, dim_v = bounds.task.shape.head_dim_v;
  WorkspaceLayout layout(workspace);
  layout.Place(b.queries, states * dim_k);
  layout.Place(b.errors, states);
  layout.Place(b.masses, states);
  layout.Place(b.visible_ends, states);
  layout.Place(b.units, units);
  layout.Place(b.attend, units);
  layout.Place(b.ranges, units * bounds.ranges);
  layout.Place(b.range_begins, units * (bounds.ranges + 1));
  layout.Place(b.exact_outputs, units * splits * queries * dim_v);
  layout.Place(b.exact_lses, units * splits * queries);
  // Written by the plan whether or not zones follow.
  const int64_t parts = units * bounds.segments;
  layout.Place(b.indexes, parts);
  layout.Place(b.first_clusters, units * (bounds.segments + 1));
  layout.Place(b.first_supers, units * (bounds.segments + 1));
  layout.Place(b.rotate, 1);
  layout.Place(b.score_supers, parts);
  layout.Place(b.select_supers, units);
  layout.Place(b.score_clusters, parts);
  layout.Place(b.select_clusters, units);
  layout.Place(b.score_tokens, parts);
  layout.Place(b.select_tokens, units);
  layout.Place(b.estimate, parts);
  if (options.exact) return layout.used();

  layout.Place(b.rotated, states * dim_k);
  if (!options.opens_all) {
    const int64_t supers = units * bounds.supers;
    layout.Place(b.super_sizes, supers);
    layout.Place(b.super_log_masses, supers * group);
    layout.Place(b.super_scores, supers * group);
    layout.Place(b.super_probabilities, supers);
    layout.Place(b.super_zones, supers);
    layout.Place(b.super_retrieved, supers);
  }
  const int64_t clusters = units * bounds.clusters;
  layout.Place(b.sizes, clusters);
  layout.Place(b.log_masses, clusters * group);
  layout.Place(b.rank_scores, clusters * group);
  layout.Place(b.probabilities, clusters);
  layout.Place(b.zones, clusters);
  layout.Place(b.retrieved, clusters);
  if (options.zones == Zones::kSketch) {
    const int64_t tokens = units * bounds.sketch_tokens;
    layout.Place(b.sketch_clusters, clusters);
    layout.Place(b.sketch_before, units * (bounds.clusters + 1));
    layout.Place(b.tokens_before, units * (bounds.clusters + 1));
    layout.Place(b.token_logits, tokens * group);
    layout.Place(b.token_scores, tokens * group);
    layout.Place(b.token_probabilities, tokens);
    layout.Place(b.chosen, tokens);
  }
  layout.Place(b.listed, clusters);
  layout.Place(b.segment_listed, parts);
  layout.Place(b.rows, units * bounds.chosen);
  layout.Place(b.values, units * bounds.chosen);
  layout.Place(b.estimated_outputs, parts * group * dim_v);
  layout.Place(b.estimated_lses, parts * group);
  layout.Place(b.missing_lses, parts * group);
  layout.Place(b.value_variances, parts * group);
  layout.Place(b.num_value_means, parts);
  layout.Place(b.num_super_value_means, parts);
  if (options.target_error > 0.0) {
    layout.Place(b.attend_steady, units);
    layout.Place(b.coarse, parts);
    layout.Place(b.coarse_lses, states);
    layout.Place(b.inverse_squares, states);
    layout.Place(b.logit_spreads, states);
    layout.Place(b.cluster_variances, clusters);
    layout.Place(b.hidden_variances, clusters);
    layout.Place(b.key_spreads, clusters);
    layout.Place(b.token_variances, units * bounds.sketch_tokens);
    layout.Place(b.cluster_risks, units);
    layout.Place(b.token_risks, units);
  }
  layout.Place(b.scratch, ScratchBytes(operations, options, bounds));
  return layout.used();
}

}  // namespace

int64_t StepWorkspaceBytes(const GpuOperations& operations, const StepOptions& options,
                           const StepBounds& bounds) {
  StepBuffers buffers;
  return Place(operations, options, bounds, nullptr, buffers);
}

StepBuffers LayOutStep(const GpuOperations& operations, const StepOptions& options,
                       const StepBounds& bounds, std::byte* workspace) {
  StepBuffers buffers;
  Place(operations, options, bounds, workspace, buffers);
  return buffers;
}

int ChooseSplits(int num_multiprocessors, int64_t num_units, int64_t tokens_max) {
  // Several blocks a multiprocessor, none with less than a few tiles of tokens.
  constexpr int64_t kBlocksOfMultiprocessor = 6, kTokensMin = 128, kSplitsMax = 256;
  const int64_t wanted =
      num_multiprocessors * kBlocksOfMultiprocessor / std::max<int64_t>(num_units, 1);
  const int64_t useful = (tokens_max + kTokensMin - 1) / kTokensMin;
  return static_cast<int>(std::clamp<int64_t>(std::min(wanted, useful), 1, kSplitsMax));
}

absl::Status QueueRanking(const GpuOperations& operations, const StepTables& tables,
                          const StepOptions& options, const StepBounds& bounds,
                          const StepQueries& queries, const StepBuffers& buffers, StepFlags* flags,
                          GpuStream stream) {
  WAVEKV_RETURN_IF_ERROR(operations.plan_step(tables, options, bounds, buffers, flags, stream));
  WAVEKV_RETURN_IF_ERROR(
      operations.load_queries(tables, options, bounds, queries, buffers, flags, stream));
  if (options.exact || bounds.segments == 0) return absl::OkStatus();

  const int64_t units = bounds.num_units, parts = units * bounds.segments;
  WAVEKV_RETURN_IF_ERROR(
      operations.rotate_rows({buffers.rotate, 1}, WithItems(bounds, bounds.num_states), stream));
  if (!options.opens_all) {
    WAVEKV_RETURN_IF_ERROR(operations.score_supers({buffers.score_supers, parts},
                                                   WithItems(bounds, bounds.index_supers), stream));
    WAVEKV_RETURN_IF_ERROR(operations.select_clusters(
        {buffers.select_supers, units}, WithItems(bounds, bounds.supers), buffers.scratch, stream));
  }
  WAVEKV_RETURN_IF_ERROR(operations.score_clusters(
      {buffers.score_clusters, parts}, WithItems(bounds, bounds.index_clusters), stream));
  if (options.target_error > 0.0) {
    WAVEKV_RETURN_IF_ERROR(operations.measure_clusters(bounds, buffers, stream));
    WAVEKV_RETURN_IF_ERROR(operations.attend_rows({buffers.attend_steady, units}, bounds.task,
                                                  bounds.steady_splits, stream));
    WAVEKV_RETURN_IF_ERROR(operations.estimate_clusters({buffers.coarse, parts},
                                                        WithItems(bounds, bounds.index_clusters),
                                                        buffers.scratch, stream));
    WAVEKV_RETURN_IF_ERROR(operations.measure_units(bounds, buffers, stream));
  }
  WAVEKV_RETURN_IF_ERROR(operations.select_clusters({buffers.select_clusters, units},
                                                    WithItems(bounds, bounds.clusters),
                                                    buffers.scratch, stream));
  if (options.zones == Zones::kSketch) {
    WAVEKV_RETURN_IF_ERROR(operations.list_sketch(options, bounds, buffers, flags, stream));
    WAVEKV_RETURN_IF_ERROR(operations.score_tokens({buffers.score_tokens, parts},
                                                   WithItems(bounds, bounds.index_tokens), stream));
    WAVEKV_RETURN_IF_ERROR(operations.select_tokens({buffers.select_tokens, units},
                                                    WithItems(bounds, bounds.sketch_tokens),
                                                    buffers.scratch, stream));
  }
  return operations.list_chosen(options, bounds, buffers, flags, stream);
}

absl::Status QueueAnswer(const GpuOperations& operations, const StepTables& tables,
                         const StepOptions& options, const StepBounds& bounds,
                         const StepBuffers& buffers, const StepOutputs& outputs, StepStats* stats,
                         GpuStream stream) {
  WAVEKV_RETURN_IF_ERROR(operations.attend_rows({buffers.attend, bounds.num_units}, bounds.task,
                                                bounds.num_splits, stream));
  if (!options.exact && bounds.segments > 0) {
    WAVEKV_RETURN_IF_ERROR(operations.estimate_clusters(
        {buffers.estimate, bounds.num_units * bounds.segments},
        WithItems(bounds, bounds.index_clusters), buffers.scratch, stream));
  }
  return operations.finish_step(tables, options, bounds, buffers, outputs, stats, stream);
}

}  // namespace wavekv
