#include "cpu/estimate_clusters.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "storage/float16.h"

namespace wavekv::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

float SquaredLength(const float* x, int dim) {
  float sum = 0.0f;
  for (int d = 0; d < dim; ++d) sum += x[d] * x[d];
  return sum;
}

// Mean of the values in the remainder zone: what the other clusters leave of the segment's sum.
// REQUIRES: mean is all zeros.
void RemainderMean(const EstimateClustersTask& task, float* mean) {
  const ClusterIndex& index = *task.index;
  const int dim = index.shape.head_dim_v;
  int64_t others = 0;
  for (int64_t i = 0; i < index.num_clusters; ++i) {
    if (task.zones[i] == Zone::kRemainder) continue;
    const int64_t size = index.cluster_size(i);
    others += size;
    for (int d = 0; d < dim; ++d) {
      mean[d] += size * LoadElement(index.value_means, index.statistics_dtype, i * dim + d);
    }
  }
  const int64_t left = index.num_tokens - others;
  for (int d = 0; d < dim; ++d) {
    mean[d] = (index.mean_value[d] * index.num_tokens - mean[d]) / left;
  }
}

void EstimateErrors(const EstimateClustersTask& task, int h, float lse) {
  if (task.missing_mass == nullptr && task.value_variance == nullptr) return;
  const ClusterIndex& index = *task.index;
  const float* masses = task.log_masses + h * task.log_masses_stride;
  const int dim = index.shape.head_dim_k;
  const float q2 = SquaredLength(task.queries + static_cast<int64_t>(h) * dim, dim);
  float missing = 0.0f;
  float variance = 0.0f;
  for (int64_t i = 0; i < index.num_clusters; ++i) {
    if (task.zones[i] == Zone::kRetrieval || lse == -kInfinity) continue;
    const float w = std::exp(masses[i] - lse);
    const float s = q2 * index.key_spreads[i] / dim;
    missing += w * std::expm1(std::min(s / 2, 3.0f));
    variance += w * w * index.value_spreads[i] *
                (1.0f / index.cluster_size(i) + std::expm1(std::min(s, 3.0f)));
  }
  if (task.missing_mass != nullptr) task.missing_mass[h] = missing;
  if (task.value_variance != nullptr) task.value_variance[h] = variance;
}

void EstimateOneQuery(const EstimateClustersTask& task, const float* remainder_mean, int h) {
  const ClusterIndex& index = *task.index;
  const float* masses = task.log_masses + h * task.log_masses_stride;
  const int dim = index.shape.head_dim_v;
  float* output = task.output + static_cast<int64_t>(h) * dim;
  std::fill_n(output, dim, 0.0f);

  float max = -kInfinity;
  for (int64_t i = 0; i < index.num_clusters; ++i) {
    if (task.zones[i] != Zone::kRetrieval) max = std::max(max, masses[i]);
  }
  float sum = 0.0f;
  float remainder = 0.0f;
  for (int64_t i = 0; i < index.num_clusters && max != -kInfinity; ++i) {
    if (task.zones[i] == Zone::kRetrieval) continue;
    const float w = std::exp(masses[i] - max);
    sum += w;
    if (task.zones[i] == Zone::kRemainder) {
      remainder += w;
      continue;
    }
    for (int d = 0; d < dim; ++d) {
      output[d] += w * LoadElement(index.value_means, index.statistics_dtype, i * dim + d);
    }
  }
  for (int d = 0; d < dim && sum > 0.0f; ++d) {
    output[d] = (output[d] + remainder * remainder_mean[d]) / sum;
  }
  task.lse[h] = sum > 0.0f ? max + std::log(sum) : -kInfinity;
  EstimateErrors(task, h, task.lse[h]);
}

}  // namespace

void EstimateClusters(const EstimateClustersTask& task) {
  float remainder_mean[kHeadDimMax] = {};
  const Zone* zones_end = task.zones + task.index->num_clusters;
  if (std::find(task.zones, zones_end, Zone::kRemainder) != zones_end) {
    RemainderMean(task, remainder_mean);
  }
  for (int h = 0; h < task.num_queries; ++h) EstimateOneQuery(task, remainder_mean, h);
}

}  // namespace wavekv::cpu
