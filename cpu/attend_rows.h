#ifndef WAVEKV_CPU_ATTEND_ROWS_H_
#define WAVEKV_CPU_ATTEND_ROWS_H_

#include <cstdint>

#include "absl/types/span.h"
#include "compute/attend_rows.h"

namespace wavekv::cpu {

// Backend::AttendRows in parts, each some of the task's queries, which workers may share. The
// division depends on the task alone.
int64_t NumParts(const AttendRowsTask& task);  // at least 1
void AttendRows(const AttendRowsTask& task, int64_t part);

// What a thread that runs one task after the other knows: the first rows of the next task may be
// asked for while the last of this one are worked on.
struct NextRows {
  bool asked = false;                    // for the first rows of this task
  const AttendRowsTask* task = nullptr;  // of the same shape; nullptr: there is none
};
// All parts of the tasks in turn.
void AttendInTurn(absl::Span<const AttendRowsTask> tasks);

}  // namespace wavekv::cpu

#endif  // WAVEKV_CPU_ATTEND_ROWS_H_
