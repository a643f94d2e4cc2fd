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

}  // namespace

int64_t NumParts(const AttendRowsTask& task) {
  return std::max(1, (task.num_queries + kManyQueries - 1) / kManyQueries);
}

void AttendRows(const AttendRowsTask& task, int64_t part) {
  const int64_t begin = part * kManyQueries;
  const int64_t end = std::min<int64_t>(begin + kManyQueries, task.num_queries);
  if (task.num_queries <= kFewQueries) {
    AttendFewQueries(task);
  } else {
    AttendManyQueries(Slice(task, begin, end));
  }
}

}  // namespace wavekv::cpu
