// A warp merges one row and head: it reads the states' lses twice and each output once.
#include "cuda/kernel.h"
#include "cuda/merge_tensors.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr int kThreads = 128;

WAVEKV_KERNEL MergeTensorsKernel(const MergeTensor* states, int64_t num_states, int64_t num_rows,
                                 int64_t num_heads, int head_dim, float to_natural,
                                 MergedTensor merged) {
  const int64_t at = int64_t{blockIdx.x} * BlockWarps() + WarpIndex();
  if (at >= num_rows * num_heads) return;
  const int64_t row = at / num_heads, head = at % num_heads;
  const auto lse_of = [&](int64_t s) {
    return states[s].lse[row * states[s].lse_row_stride + head * states[s].lse_head_stride];
  };
  float most = -kInfinity;
  for (int64_t s = LaneIndex(); s < num_states; s += kWarp) most = Max(most, lse_of(s));
  most = MaxOfWarp(most);
  // Of lses below or equal to the greatest: neither NaN nor, where all are empty, a difference of
  // infinities.
  const auto weight_of = [&](int64_t s) {
    const float lse = lse_of(s);
    return lse > -kInfinity && lse <= most ? Exp((lse - most) * to_natural) : 0.0f;
  };
  float mass = 0.0f;
  for (int64_t s = LaneIndex(); s < num_states; s += kWarp) mass += weight_of(s);
  mass = SumOfWarp(mass);
  const float scale = mass > 0.0f ? 1.0f / mass : 0.0f;
  for (int d = LaneIndex(); d < head_dim; d += kWarp) {
    float sum = 0.0f;
    for (int64_t s = 0; s < num_states; ++s) {
      const float weight = weight_of(s);
      if (weight == 0.0f) continue;  // what an empty state holds is not looked at
      const MergeTensor& state = states[s];
      sum = MulAdd(
          weight * scale,
          LoadAs(state.output, state.dtype, row * state.row_stride + head * state.head_stride + d),
          sum);
    }
    StoreAs(merged.output, merged.dtype, row * merged.row_stride + head * merged.head_stride + d,
            sum);
  }
  SyncWarp();  // lse may be that of state 0
  if (LaneIndex() == 0 && merged.lse != nullptr) {
    merged.lse[row * merged.lse_row_stride + head * merged.lse_head_stride] =
        mass > 0.0f ? most + Log(mass) / to_natural : -kInfinity;
  }
}

}  // namespace

absl::Status MergeTensors(const MergeTensor* states, int64_t num_states, int64_t num_rows,
                          int64_t num_heads, int head_dim, float to_natural,
                          const MergedTensor& merged, GpuStream stream) {
  constexpr int64_t kWarps = kThreads / kWarp;
  const GridShape grid = {static_cast<unsigned>((num_rows * num_heads + kWarps - 1) / kWarps)};
  return Launch("MergeTensors", MergeTensorsKernel, grid, kThreads, 0, stream, states, num_states,
                num_rows, num_heads, head_dim, to_natural, merged);
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
