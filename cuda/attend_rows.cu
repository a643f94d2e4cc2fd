#include "cuda/attend_any_rows.h"
#include "cuda/attend_rows.h"
#include "cuda/attend_rows_by_tensor_cores.h"
#include "cuda/kernel.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

struct Call {
  GpuTasks<GpuAttendTask> tasks;
  const TaskBounds& bounds;
  int num_splits;
  GpuStream stream;

  // Blocks of the same rows are neighbours, so that all but the first read them from the L2 cache.
  GridShape Grid(unsigned query_blocks) const {
    return {static_cast<unsigned>(tasks.count) * query_blocks, static_cast<unsigned>(num_splits)};
  }
  unsigned QueryBlocks(int queries_of_block) const {
    return static_cast<unsigned>((bounds.num_queries + queries_of_block - 1) / queries_of_block);
  }
};

template <DType kType, int kDim, int kGroups>
absl::Status ByTensorCores(const Call& call) {
  using Sizes = AttendSizes<kType, kDim, kGroups>;
  const unsigned query_blocks = call.QueryBlocks(Sizes::kQueries);
  return Launch("AttendRows", AttendByTensorCoresKernel<kType, kDim, kGroups>,
                call.Grid(query_blocks), Sizes::kThreads, Sizes::SharedBytes(), call.stream,
                call.tasks.tasks, query_blocks, call.num_splits);
}

template <DType kType, int kDim>
absl::Status ByTensorCoresOfDim(const Call& call) {
  // Few kinds of kernels, for the sake of compile times.
  constexpr int kMostGroups = kDim > 128 ? 2 : 4;
  if (call.bounds.num_queries <= kGroupQueries) return ByTensorCores<kType, kDim, 1>(call);
  if constexpr (kDim == 128) {
    if (call.bounds.num_queries <= 2 * kGroupQueries) return ByTensorCores<kType, kDim, 2>(call);
  }
  return ByTensorCores<kType, kDim, kMostGroups>(call);
}

template <DType kType>
absl::Status AnyDim(const Call& call) {
  const unsigned query_blocks = call.QueryBlocks(AnyRows::kQueries);
  return Launch("AttendRows", AttendAnyRowsKernel<kType>, call.Grid(query_blocks),
                AnyRows::kThreads, AnyRows::SharedBytes(call.bounds.shape), call.stream,
                call.tasks.tasks, call.bounds.shape, query_blocks, call.num_splits);
}

template <DType kType>
absl::Status HalfRows(const Call& call) {
  if (call.bounds.shape.head_dim_k == call.bounds.shape.head_dim_v) {
    switch (call.bounds.shape.head_dim_k) {
      case 64:
        return ByTensorCoresOfDim<kType, 64>(call);
      case 80:
        return ByTensorCoresOfDim<kType, 80>(call);
      case 96:
        return ByTensorCoresOfDim<kType, 96>(call);
      case 128:
        return ByTensorCoresOfDim<kType, 128>(call);
      case 256:
        return ByTensorCoresOfDim<kType, 256>(call);
      default:
        break;
    }
  }
  return AnyDim<kType>(call);
}

}  // namespace

absl::Status AttendRows(GpuTasks<GpuAttendTask> tasks, const TaskBounds& bounds, int num_splits,
                        GpuStream stream) {
  const Call call = {tasks, bounds, num_splits, stream};
  switch (bounds.shape.dtype) {
    case DType::kFloat16:
      return HalfRows<DType::kFloat16>(call);
    case DType::kBFloat16:
      return HalfRows<DType::kBFloat16>(call);
    default:
      return AnyDim<DType::kFloat32>(call);
  }
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
