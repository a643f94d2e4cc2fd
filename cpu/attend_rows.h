#ifndef WAVEKV_CPU_ATTEND_ROWS_H_
#define WAVEKV_CPU_ATTEND_ROWS_H_

#include "compute/attend_rows.h"

namespace wavekv::cpu {

// One worker's share of Backend::AttendRows.
void AttendRows(const AttendRowsTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_ATTEND_ROWS_H_
