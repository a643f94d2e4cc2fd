#include "cpu/rotate_rows.h"

#include <algorithm>

#include "compute/rotation.h"

namespace wavekv::cpu {

void RotateRows(const RotateRowsTask& task) {
  const Rotation rotation(task.dim);
  for (int64_t i = 0; i < task.num_rows; ++i) {
    float* row = task.target + i * task.dim;
    if (task.source != task.target) std::copy_n(task.source + i * task.dim, task.dim, row);
    rotation.Apply(row);
  }
}

}  // namespace wavekv::cpu
