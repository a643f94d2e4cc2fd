#ifndef WAVEKV_CPU_ATTEND_ROWS_H_
#define WAVEKV_CPU_ATTEND_ROWS_H_

#include <cstdint>

#include "compute/attend_rows.h"

namespace wavekv::cpu {

// Backend::AttendRows in parts, each some of the task's queries, which workers may share. The
// division depends on the task alone.
int64_t NumParts(const AttendRowsTask& task);  // at least 1
void AttendRows(const AttendRowsTask& task, int64_t part);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_ATTEND_ROWS_H_
