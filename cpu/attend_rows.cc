#include "cpu/attend_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/attend_few_queries.h"
#include "storage/float16.h"

namespace wavekv::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t Position(const KvRange& range, int64_t token) {
  return range.position_begin + (range.positions == nullptr ? token : range.positions[token]);
}

void AttendOneQuery(const AttendRowsTask& task, int query) {
  const int dim_k = task.shape.head_dim_k;
  const int dim_v = task.shape.head_dim_v;
  const float* q = task.queries + static_cast<int64_t>(query) * dim_k;
  float* output = task.output + static_cast<int64_t>(query) * dim_v;
  for (int d = 0; d < dim_v; ++d) output[d] = 0.0f;
  float max = -kInfinity;
  float sum = 0.0f;
  for (const KvRange& range : task.ranges) {
    for (int64_t t = 0; t < range.num_tokens; ++t) {
      if (task.visible_end != nullptr && Position(range, t) >= task.visible_end[query]) continue;
      float logit = 0.0f;
      for (int d = 0; d < dim_k; ++d) {
        logit += q[d] * LoadElement(range.keys, task.shape.dtype, t * dim_k + d);
      }
      logit = std::clamp(logit, -1e37f, 1e37f);
      if (logit > max) {
        const float shrink = std::exp(max - logit);
        sum *= shrink;
        for (int d = 0; d < dim_v; ++d) output[d] *= shrink;
        max = logit;
      }
      const float weight = std::exp(logit - max);
      sum += weight;
      for (int d = 0; d < dim_v; ++d) {
        output[d] += weight * LoadElement(range.values, task.shape.dtype, t * dim_v + d);
      }
    }
  }
  task.lse[query] = sum > 0.0f ? max + std::log(sum) : -kInfinity;
  if (sum > 0.0f) {
    for (int d = 0; d < dim_v; ++d) output[d] /= sum;
  }
}

}  // namespace

void AttendRows(const AttendRowsTask& task) {
  if (task.num_queries <= kFewQueries) return AttendFewQueries(task);
  for (int i = 0; i < task.num_queries; ++i) AttendOneQuery(task, i);
}

}  // namespace wavekv::cpu
