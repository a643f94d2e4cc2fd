#ifndef WAVEKV_CPU_CONVERT_ROWS_H_
#define WAVEKV_CPU_CONVERT_ROWS_H_

#include "compute/convert_rows.h"

namespace wavekv::cpu {

// One worker's share of Backend::ConvertRows.
void ConvertRows(const ConvertRowsTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_CONVERT_ROWS_H_
