#include "cpu/attend_rows.h"

#include <algorithm>

#include "cpu/attend_few_queries.h"
#include "cpu/attend_many_queries.h"

namespace wavekv::cpu {
namespace {

// The task of some of the queries.
AttendRowsTask Slice(AttendRowsTask task, int64_t begin, int64_t end) {
  task.queries += begin * task.shape.head_dim_k;
  task.num_queries = static_cast<int>(end - begin);
  if (task.visible_end != nullptr) task.visible_end += begin;
  task.output += begin * task.shape.head_dim_v;
  task.lse += begin;
  return task;
}

bool HaveRowsAlike(const AttendRowsTask& a, const AttendRowsTask& b) {
  return a.shape.head_dim_k == b.shape.head_dim_k && a.shape.head_dim_v == b.shape.head_dim_v &&
         a.shape.dtype == b.shape.dtype;
}

}  // namespace

int64_t NumParts(const AttendRowsTask& task) {
  return std::max(1, (task.num_queries + kManyQueries - 1) / kManyQueries);
}

void AttendRows(const AttendRowsTask& task, int64_t part) {
  const int64_t begin = part * kManyQueries;
  const int64_t end = std::min<int64_t>(begin + kManyQueries, task.num_queries);
  if (task.num_queries <= kFewQueries) {
    AttendFewQueries(task, {});
  } else {
    AttendManyQueries(Slice(task, begin, end));
  }
}

void AttendInTurn(absl::Span<const AttendRowsTask> tasks) {
  NextRows next;
  for (size_t i = 0; i < tasks.size(); ++i) {
    const AttendRowsTask& task = tasks[i];
    if (task.num_queries > kFewQueries) {
      for (int64_t part = 0; part < NumParts(task); ++part) AttendRows(task, part);
      next.asked = false;
      continue;
    }
    next.task = i + 1 < tasks.size() && HaveRowsAlike(task, tasks[i + 1]) ? &tasks[i + 1] : nullptr;
    next.asked = AttendFewQueries(task, next);
  }
}

}  // namespace wavekv::cpu
