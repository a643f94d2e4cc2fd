#include "cpu/convert_rows.h"

#include <cmath>

#include "storage/float16.h"

namespace wavekv::cpu {

void ConvertRows(const ConvertRowsTask& task) {
  bool all_finite = true;
  const bool copies = task.source_dtype == task.target_dtype && task.scale == 1.0f;
  const int64_t bytes = DTypeBytes(task.source_dtype);
  for (int64_t row = 0; row < task.num_rows; ++row) {
    for (int64_t i = 0; i < task.row_elements; ++i) {
      const int64_t from = row * task.source_stride + i;
      const int64_t to = row * task.target_stride + i;
      const float value = LoadElement(task.source, task.source_dtype, from);
      if (copies) {
        std::memcpy(static_cast<char*>(task.target) + to * bytes,
                    static_cast<const char*>(task.source) + from * bytes, bytes);
      } else {
        StoreElement(task.target, task.target_dtype, to, value * task.scale);
      }
      all_finite = all_finite && std::isfinite(value) &&
                   std::isfinite(LoadElement(task.target, task.target_dtype, to));
    }
  }
  if (task.all_finite != nullptr) *task.all_finite = all_finite;
}

}  // namespace wavekv::cpu
