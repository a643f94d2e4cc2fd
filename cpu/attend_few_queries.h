#ifndef WAVEKV_CPU_ATTEND_FEW_QUERIES_H_
#define WAVEKV_CPU_ATTEND_FEW_QUERIES_H_

#include "compute/attend_rows.h"
#include "cpu/attend_rows.h"

namespace wavekv::cpu {

inline constexpr int kFewQueries = 16;

// AttendRows for at most kFewQueries queries, a decode step's: limited by memory, so each row is
// streamed once and never stored in another form.
// Returns whether rows of next.task were asked for.
bool AttendFewQueries(const AttendRowsTask& task, const NextRows& next);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_ATTEND_FEW_QUERIES_H_
