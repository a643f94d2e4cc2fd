#include "cuda/gpu_operations.h"
#include "cuda/kernel.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {

const GpuOperations& Operations() {
  static constexpr GpuOperations kOperations = {
      .append_rows = &AppendRows,
      .attend_rows = &AttendRows,
      .cluster_scratch_bytes = &ClusterScratchBytes,
      .cluster_segments = &ClusterSegments,
      .convert_rows = &ConvertRows,
      .estimate_clusters = &EstimateClusters,
      .estimate_scratch_bytes = &EstimateScratchBytes,
      .finish_step = &FinishStep,
      .list_chosen = &ListChosen,
      .list_index_rows = &ListIndexRows,
      .list_rows = &ListRows,
      .list_sketch = &ListSketch,
      .load_queries = &LoadQueries,
      .measure_clusters = &MeasureClusters,
      .measure_units = &MeasureUnits,
      .merge_states = &MergeStates,
      .merge_tensors = &MergeTensors,
      .plan_step = &PlanStep,
      .rotate_rows = &RotateRows,
      .score_clusters = &ScoreClusters,
      .score_supers = &ScoreSupers,
      .score_tokens = &ScoreTokens,
      .select_clusters = &SelectClusters,
      .select_scratch_bytes = &SelectScratchBytes,
      .select_tokens = &SelectTokens,
      .unseal_rows = &UnsealRows,
      .write_index_scratch_bytes = &WriteIndexScratchBytes,
      .write_indexes = &WriteIndexes,
  };
  return kOperations;
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
