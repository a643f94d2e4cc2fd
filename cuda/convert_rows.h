#ifndef WAVEKV_CUDA_CONVERT_ROWS_H_
#define WAVEKV_CUDA_CONVERT_ROWS_H_

#include "absl/status/status.h"
#include "compute/convert_rows.h"
#include "compute/rotate_rows.h"
#include "cuda/gpu_types.h"

// compute/convert_rows.h and compute/rotate_rows.h on GPUs. Bounds: num_items, rows of a task.
// *all_finite must be true before; it is made false or left alone. A task of 0 rows is skipped.
WAVEKV_GPU_OPERATION(absl::Status ConvertRows(GpuTasks<ConvertRowsTask> tasks,
                                              const TaskBounds& bounds, GpuStream stream);
                     absl::Status RotateRows(GpuTasks<RotateRowsTask> tasks,
                                             const TaskBounds& bounds, GpuStream stream))

#endif  // WAVEKV_CUDA_CONVERT_ROWS_H_
