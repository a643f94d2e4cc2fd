#ifndef WAVEKV_CPU_ROTATE_ROWS_H_
#define WAVEKV_CPU_ROTATE_ROWS_H_

#include "compute/rotate_rows.h"

namespace wavekv::cpu {

// One worker's share of Backend::RotateRows.
void RotateRows(const RotateRowsTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_ROTATE_ROWS_H_
