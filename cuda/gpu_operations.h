// All operations of a GPU, as one table: for those who learn at run time whether it is emulated.
#ifndef WAVEKV_CUDA_GPU_OPERATIONS_H_
#define WAVEKV_CUDA_GPU_OPERATIONS_H_

#include "cuda/attend_rows.h"
#include "cuda/cluster_segments.h"
#include "cuda/convert_rows.h"
#include "cuda/estimate_clusters.h"
#include "cuda/finish_step.h"
#include "cuda/list_tokens.h"
#include "cuda/measure_step.h"
#include "cuda/merge_states.h"
#include "cuda/merge_tensors.h"
#include "cuda/move_rows.h"
#include "cuda/plan_step.h"
#include "cuda/score_clusters.h"
#include "cuda/score_tokens.h"
#include "cuda/select_items.h"
#include "cuda/write_indexes.h"

namespace wavekv {

struct GpuOperations {
  decltype(&gpu::AppendRows) append_rows = nullptr;
  decltype(&gpu::AttendRows) attend_rows = nullptr;
  decltype(&gpu::ClusterScratchBytes) cluster_scratch_bytes = nullptr;
  decltype(&gpu::ClusterSegments) cluster_segments = nullptr;
  decltype(&gpu::ConvertRows) convert_rows = nullptr;
  decltype(&gpu::EstimateClusters) estimate_clusters = nullptr;
  decltype(&gpu::EstimateScratchBytes) estimate_scratch_bytes = nullptr;
  decltype(&gpu::FinishStep) finish_step = nullptr;
  decltype(&gpu::ListChosen) list_chosen = nullptr;
  decltype(&gpu::ListIndexRows) list_index_rows = nullptr;
  decltype(&gpu::ListRows) list_rows = nullptr;
  decltype(&gpu::ListSketch) list_sketch = nullptr;
  decltype(&gpu::LoadQueries) load_queries = nullptr;
  decltype(&gpu::MeasureClusters) measure_clusters = nullptr;
  decltype(&gpu::MeasureUnits) measure_units = nullptr;
  decltype(&gpu::MergeStates) merge_states = nullptr;
  decltype(&gpu::MergeTensors) merge_tensors = nullptr;
  decltype(&gpu::PlanStep) plan_step = nullptr;
  decltype(&gpu::RotateRows) rotate_rows = nullptr;
  decltype(&gpu::ScoreClusters) score_clusters = nullptr;
  decltype(&gpu::ScoreSupers) score_supers = nullptr;
  decltype(&gpu::ScoreTokens) score_tokens = nullptr;
  decltype(&gpu::SelectClusters) select_clusters = nullptr;
  decltype(&gpu::SelectScratchBytes) select_scratch_bytes = nullptr;
  decltype(&gpu::SelectTokens) select_tokens = nullptr;
  decltype(&gpu::UnsealRows) unseal_rows = nullptr;
  decltype(&gpu::WriteIndexScratchBytes) write_index_scratch_bytes = nullptr;
  decltype(&gpu::WriteIndexes) write_indexes = nullptr;
};

}  // namespace wavekv

WAVEKV_GPU_OPERATION(const GpuOperations& Operations())

#endif  // WAVEKV_CUDA_GPU_OPERATIONS_H_
