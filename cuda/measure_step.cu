// A block for each segment of a unit, then a block a query of a unit.
#include "cuda/kernel.h"
#include "cuda/measure_step.h"
#include "cuda/step_parts.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr int kClusterThreads = 256, kUnitThreads = 128;

// How much each cluster of a segment may err; and all clusters into the remainder zone.
WAVEKV_KERNEL MeasureClustersKernel(StepBounds bounds, StepBuffers buffers) {
  // As kHiddenCaution of api/rank_units.cc.
  constexpr float kHiddenCaution = 20.0f;
  const int64_t number = blockIdx.x / bounds.segments, i = blockIdx.x % bounds.segments;
  if (i >= buffers.units[number].num_indexes) return;
  const ClusterIndex& index = *buffers.indexes[number * bounds.segments + i];
  const int64_t first =
      number * bounds.clusters + buffers.first_clusters[number * (bounds.segments + 1) + i];
  for (int64_t s = WarpIndex(); s < index.num_supers; s += BlockWarps()) {
    const int64_t end = index.super_offsets[s + 1];
    for (int64_t c = index.super_offsets[s] + LaneIndex(); c < end; c += kWarp) {
      buffers.zones[first + c] = Zone::kRemainder;
      buffers.key_spreads[first + c] = index.key_spreads[c];
      buffers.cluster_variances[first + c] = Min(ClusterVariance(index, s), kVarianceMax);
      buffers.hidden_variances[first + c] =
          Min(HiddenVariance(index, s, c, kHiddenCaution), kVarianceMax);
    }
  }
}

// A first look at the outputs, for target_error: the steady zone exactly, all else by means of
// super-clusters. Errors are relative to its length, which is the best that is known before rows
// are read. A block a query of a unit.
WAVEKV_KERNEL MeasureUnitsKernel(StepBounds bounds, StepBuffers buffers) {
  constexpr float kMost = 3.402823466e38f;
  SharedMemory shared;
  float* const scratch = shared.Take<float>(33);
  float* const weights = shared.Take<float>(bounds.steady_splits + bounds.segments);
  const int64_t number = blockIdx.x;
  const int query = static_cast<int>(blockIdx.y);
  const StepUnit& unit = buffers.units[number];
  const auto num_indexes = static_cast<int>(unit.num_indexes);
  const int num_steady = bounds.steady_splits;
  const int num_states = num_steady + num_indexes;
  const int64_t steady = number * bounds.num_exact_states() * bounds.task.num_queries + query;
  const int64_t part = number * bounds.segments * bounds.group + query;
  for (int s = ThreadIndex(); s < num_states; s += BlockThreads()) {
    weights[s] = s < num_steady
                     ? buffers.exact_lses[steady + int64_t{s} * bounds.group]
                     : buffers.estimated_lses[part + int64_t{s - num_steady} * bounds.group];
  }
  SyncBlock();
  float most = -kInfinity;
  for (int s = ThreadIndex(); s < num_states; s += BlockThreads()) most = Max(most, weights[s]);
  most = MaxOfBlock(most, scratch);
  float mass = 0.0f;
  for (int s = ThreadIndex(); s < num_states; s += BlockThreads()) {
    weights[s] = weights[s] == -kInfinity ? 0.0f : Exp(weights[s] - most);
    mass += weights[s];
  }
  mass = SumOfBlock(mass, scratch);
  const int dim = bounds.task.shape.head_dim_v;
  float squared = 0.0f;
  for (int d = ThreadIndex(); d < dim; d += BlockThreads()) {
    float sum = 0.0f;
    for (int s = 0; s < num_states; ++s) {
      if (weights[s] == 0.0f) continue;
      const float* const output =
          s < num_steady
              ? buffers.exact_outputs + (steady + int64_t{s} * bounds.group) * dim
              : buffers.estimated_outputs + (part + int64_t{s - num_steady} * bounds.group) * dim;
      sum = MulAdd(weights[s], output[d], sum);
    }
    const float output = mass > 0.0f ? sum / mass : 0.0f;
    squared = MulAdd(output, output, squared);
  }
  squared = SumOfBlock(squared, scratch);
  const int64_t state = unit.first_state + query;
  const int dim_k = bounds.task.shape.head_dim_k;
  float spread = 0.0f;
  for (int d = ThreadIndex(); d < dim_k; d += BlockThreads()) {
    const float element = buffers.rotated[state * dim_k + d];
    spread = MulAdd(element, element, spread);
  }
  spread = SumOfBlock(spread, scratch);
  if (ThreadIndex() != 0) return;
  buffers.coarse_lses[state] = mass > 0.0f ? most + Log(mass) : -kInfinity;
  buffers.inverse_squares[state] = squared > 0.0f ? Min(1.0f / squared, kMost) : kMost;
  buffers.logit_spreads[state] = Min(spread / static_cast<float>(dim_k), kMost);
}

}  // namespace

absl::Status MeasureClusters(const StepBounds& bounds, const StepBuffers& buffers,
                             GpuStream stream) {
  return Launch("MeasureClusters", MeasureClustersKernel,
                {static_cast<unsigned>(bounds.num_units * bounds.segments)}, kClusterThreads, 0,
                stream, bounds, buffers);
}

absl::Status MeasureUnits(const StepBounds& bounds, const StepBuffers& buffers, GpuStream stream) {
  const GridShape grid = {static_cast<unsigned>(bounds.num_units),
                          static_cast<unsigned>(bounds.group)};
  const int64_t shared =
      SharedSize().Add<float>(33).Add<float>(bounds.steady_splits + bounds.segments).bytes();
  return Launch("MeasureUnits", MeasureUnitsKernel, grid, kUnitThreads, shared, stream, bounds,
                buffers);
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
