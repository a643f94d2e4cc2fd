#ifndef WAVEKV_CPU_CENTRE_ROWS_H_
#define WAVEKV_CPU_CENTRE_ROWS_H_

#include "compute/centre_rows.h"

namespace wavekv::cpu {

// One worker's share of Backend::SumRows and Backend::CentreRows.
void SumRows(const SumRowsTask& task);
void CentreRows(const CentreRowsTask& task);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_CENTRE_ROWS_H_
