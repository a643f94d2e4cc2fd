// A block merges one query of a unit; a last block adds up.
#include "cuda/finish_step.h"
#include "cuda/kernel.h"
#include "cuda/step_parts.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr int kFinishThreads = 128;

// What AttendStats says of a unit but for its errors. All threads call; scratch: [33].
WAVEKV_DEVICE void CountUnit(const StepOptions& options, const StepBounds& bounds,
                             const StepBuffers& buffers, const StepSequence& sequence,
                             int64_t number, int64_t* scratch, StepStats* stats) {
  const StepUnit& unit = buffers.units[number];
  const KvShape& shape = bounds.task.shape;
  const int64_t kv_bytes = (shape.head_dim_k + shape.head_dim_v) * DTypeBytes(shape.dtype);
  int64_t visible = 0;
  for (int64_t r = 0; r < unit.num_rows; ++r) {
    visible += VisibleEnd(sequence, options.causal, unit.row + r);
  }
  const int64_t exact = visible - unit.sealed_tokens + unit.num_listed;
  int64_t bytes = 0;
  for (int64_t i = ThreadIndex(); i < unit.num_indexes; i += BlockThreads()) {
    const ClusterIndex& index = *buffers.indexes[number * bounds.segments + i];
    const uint32_t first_super = buffers.first_supers[number * (bounds.segments + 1) + i];
    int64_t num_opened = index.num_clusters;
    if (!options.opens_all) {
      for (int64_t s = 0; s < index.num_supers; ++s) {
        if (buffers.super_zones[number * bounds.supers + first_super + s] == Zone::kSketch) {
          continue;
        }
        num_opened -= index.super_offsets[s + 1] - index.super_offsets[s];
      }
    }
    const int64_t scale_bytes = index.centroids.scales == nullptr ? 0 : 4;
    const int64_t part = number * bounds.segments + i;
    bytes +=
        (shape.head_dim_k + shape.head_dim_v) * 4 + index.num_clusters * 16 +
        num_opened * (index.centroids.row_bytes + scale_bytes) +
        index.num_supers * (index.super_centroids.row_bytes + scale_bytes + 12) +
        buffers.num_value_means[part] * (index.value_means.row_bytes + scale_bytes) +
        buffers.num_super_value_means[part] * (index.super_value_means.row_bytes + scale_bytes);
    // Target_error took all super-clusters' value means for its first look.
    if (options.target_error > 0.0) {
      bytes += (index.num_supers - buffers.num_super_value_means[part]) *
               (index.super_value_means.row_bytes + scale_bytes);
    }
    if (i == 0) bytes += unit.num_sketch_tokens * (index.code_words() * 8 + 2);
  }
  bytes = SumOfBlock(bytes, scratch) + exact * kv_bytes;
  if (ThreadIndex() != 0) return;
  AtomicAdd(&stats->tokens_visible, visible);
  AtomicAdd(&stats->tokens_exact, exact);
  AtomicAdd(&stats->tokens_retrieved, unit.num_listed);
  AtomicAdd(&stats->tokens_sketched, unit.num_sketch_tokens);
  AtomicAdd(&stats->tokens_estimated, unit.sealed_tokens - unit.num_listed);
  AtomicAdd(&stats->clusters_scored, unit.num_clusters);
  if (options.zones != Zones::kSketch) AtomicAdd(&stats->clusters_retrieved, unit.num_selected);
  AtomicAdd(&stats->bytes_dense, visible * kv_bytes);
  AtomicAdd(&stats->bytes_read, bytes);
}

// A block merges the states of one query of a unit.
WAVEKV_KERNEL FinishKernel(StepTables tables, StepOptions options, StepBounds bounds,
                           StepBuffers buffers, StepOutputs outputs, StepStats* stats) {
  SharedMemory shared;
  float* const scratch = shared.Take<float>(33);
  int64_t* const count_scratch = shared.Take<int64_t>(33);
  float* const weights = shared.Take<float>(bounds.num_exact_states() + bounds.segments);
  const int64_t number = blockIdx.x;
  const int query = static_cast<int>(blockIdx.y);
  const StepUnit& unit = buffers.units[number];
  if (query >= unit.num_rows * bounds.group) return;
  const StepSequence& sequence = tables.sequences[unit.sequence];
  const int dim = bounds.task.shape.head_dim_v;
  const int num_splits = bounds.num_exact_states();
  const auto num_indexes = static_cast<int>(unit.num_indexes);
  const int num_states = num_splits + num_indexes;
  // As AttendRows leaves them: a tile may have fewer rows than there is room for.
  const int64_t num_queries = unit.num_rows * bounds.group;
  const int64_t split = number * num_splits * bounds.task.num_queries + query;
  const int64_t part = number * bounds.segments * bounds.group + query;

  for (int s = ThreadIndex(); s < num_states; s += BlockThreads()) {
    weights[s] = s < num_splits
                     ? buffers.exact_lses[split + s * num_queries]
                     : buffers.estimated_lses[part + int64_t{s - num_splits} * bounds.group];
  }
  SyncBlock();
  float most = -kInfinity;
  for (int s = ThreadIndex(); s < num_states; s += BlockThreads()) most = Max(most, weights[s]);
  most = MaxOfBlock(most, scratch);
  float mass = 0.0f, estimated_mass = 0.0f;
  for (int s = ThreadIndex(); s < num_states; s += BlockThreads()) {
    weights[s] = weights[s] == -kInfinity ? 0.0f : Exp(weights[s] - most);
    mass += weights[s];
    if (s >= num_splits) estimated_mass += weights[s];
  }
  mass = SumOfBlock(mass, scratch);
  estimated_mass = SumOfBlock(estimated_mass, scratch);
  const float lse = mass > 0.0f ? most + Log(mass) : -kInfinity;

  // Missing mass, and the variance of value means, relative to all.
  float missing = 0.0f, variance = 0.0f;
  for (int i = ThreadIndex(); i < num_indexes; i += BlockThreads()) {
    const int64_t at = part + int64_t{i} * bounds.group;
    missing += Exp(Min(buffers.missing_lses[at] - lse, 80.0f));
    const float share = weights[num_splits + i] / mass;
    variance += share * share * buffers.value_variances[at];
  }
  missing = SumOfBlock(missing, scratch);
  variance = SumOfBlock(variance, scratch);

  const int64_t row = sequence.batch_row + unit.row + query / bounds.group;
  const int64_t head = unit.kv_head * bounds.group + query % bounds.group;
  float distance2 = 0.0f, norm2 = 0.0f;
  for (int d = ThreadIndex(); d < dim; d += BlockThreads()) {
    float exact = 0.0f, estimated = 0.0f;
    for (int s = 0; s < num_splits; ++s) {
      if (weights[s] == 0.0f) continue;
      const int64_t at = split + s * num_queries;
      exact = MulAdd(weights[s], buffers.exact_outputs[at * dim + d], exact);
    }
    for (int i = 0; i < num_indexes; ++i) {
      if (weights[num_splits + i] == 0.0f) continue;
      const int64_t at = part + int64_t{i} * bounds.group;
      estimated =
          MulAdd(weights[num_splits + i], buffers.estimated_outputs[at * dim + d], estimated);
    }
    const float output = mass > 0.0f ? (exact + estimated) / mass : 0.0f;
    const float mean = estimated_mass > 0.0f ? estimated / estimated_mass : 0.0f;
    distance2 += (mean - output) * (mean - output);
    norm2 += output * output;
    StoreAs(outputs.data, outputs.dtype, row * outputs.row_stride + head * outputs.head_stride + d,
            output);
  }
  distance2 = SumOfBlock(distance2, scratch);
  norm2 = SumOfBlock(norm2, scratch);
  if (query == 0) {
    CountUnit(options, bounds, buffers, sequence, number, count_scratch, stats);
  }
  if (ThreadIndex() != 0) return;

  float error = 0.0f;
  if (num_indexes > 0) {
    // As PredictError of api/attend_zones.cc.
    constexpr float kFurther = 1.7f, kMost = 3.402823466e38f, kRounding2 = 1e-14f;
    const float pull = kFurther * (1.0f - 1.0f / (1.0f + missing));
    if (norm2 == 0.0f) {
      error = variance == 0.0f ? 0.0f : kMost;
    } else {
      error = Min(Sqrt((pull * pull * distance2 + variance) / norm2 + kRounding2), kMost);
    }
  }
  const int64_t state = unit.first_state + query;
  buffers.masses[state] = mass > 0.0f ? estimated_mass / mass : 0.0f;
  buffers.errors[state] = error;
  if (outputs.lse != nullptr) {
    outputs.lse[row * outputs.lse_row_stride + head * outputs.lse_head_stride] =
        lse * options.lse_scale;
  }
  if (outputs.error != nullptr) {
    outputs.error[row * outputs.error_row_stride + head * outputs.error_head_stride] = error;
  }
}

constexpr int kSumThreads = 1024;

WAVEKV_KERNEL SumErrorsKernel(StepBounds bounds, StepBuffers buffers, StepStats* stats) {
  SharedMemory shared;
  double* const scratch = shared.Take<double>(33);
  double mass = 0.0, error = 0.0, mass_max = 0.0, error_max = 0.0;
  for (int64_t i = ThreadIndex(); i < bounds.num_states; i += BlockThreads()) {
    mass += buffers.masses[i];
    error += buffers.errors[i];
    mass_max = Max(mass_max, double{buffers.masses[i]});
    error_max = Max(error_max, double{buffers.errors[i]});
  }
  const auto most = [](double a, double b) { return a < b ? b : a; };
  mass = SumOfBlock(mass, scratch);
  error = SumOfBlock(error, scratch);
  mass_max = ReduceBlock(mass_max, 0.0, scratch, most);
  error_max = ReduceBlock(error_max, 0.0, scratch, most);
  if (ThreadIndex() != 0) return;
  stats->estimated_mass += mass;
  stats->error_estimate += error;
  stats->estimated_mass_max = Max(stats->estimated_mass_max, mass_max);
  stats->error_estimate_max = Max(stats->error_estimate_max, error_max);
}

}  // namespace

absl::Status FinishStep(const StepTables& tables, const StepOptions& options,
                        const StepBounds& bounds, const StepBuffers& buffers,
                        const StepOutputs& outputs, StepStats* stats, GpuStream stream) {
  const GridShape grid = {static_cast<unsigned>(bounds.num_units),
                          static_cast<unsigned>(bounds.task.num_queries)};
  const int64_t shared = SharedSize()
                             .Add<float>(33)
                             .Add<int64_t>(33)
                             .Add<float>(bounds.num_exact_states() + bounds.segments)
                             .bytes();
  const absl::Status finished = Launch("FinishStep", FinishKernel, grid, kFinishThreads, shared,
                                       stream, tables, options, bounds, buffers, outputs, stats);
  if (!finished.ok()) return finished;
  return Launch("SumErrors", SumErrorsKernel, {1}, kSumThreads,
                SharedSize().Add<double>(33).bytes(), stream, bounds, buffers, stats);
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
