#include "cpu/select_clusters.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace wavekv::cpu {
namespace {

void SumProbabilities(const SelectClustersTask& task) {
  const int64_t n = task.num_clusters;
  std::fill_n(task.probabilities, n, 0.0f);
  for (int h = 0; h < task.num_queries; ++h) {
    const float* masses = task.log_masses + h * task.log_masses_stride;
    const float max = *std::max_element(masses, masses + n);
    if (max == -std::numeric_limits<float>::infinity()) continue;
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) sum += std::exp(masses[i] - max);
    const float inverse = static_cast<float>(1.0 / sum);
    for (int64_t i = 0; i < n; ++i) task.probabilities[i] += inverse * std::exp(masses[i] - max);
  }
}

}  // namespace

void SelectClusters(const SelectClustersTask& task) {
  if (task.num_clusters > 0) SumProbabilities(task);
  uint32_t* ranked = task.retrieved;
  std::iota(ranked, ranked + task.num_clusters, 0u);
  const float* p = task.probabilities;
  std::sort(ranked, ranked + task.num_clusters,
            [p](uint32_t a, uint32_t b) { return p[a] != p[b] ? p[a] > p[b] : a < b; });
  int64_t tokens = 0;
  int64_t rank = 0;
  for (; rank < task.num_clusters && tokens < task.token_budget; ++rank) {
    task.zones[ranked[rank]] = Zone::kRetrieval;
    tokens += task.sizes[ranked[rank]];
  }
  *task.num_retrieved = rank;
  for (int64_t left = task.num_estimation; rank < task.num_clusters; ++rank) {
    task.zones[ranked[rank]] = left-- > 0 ? Zone::kEstimation : Zone::kRemainder;
  }
}

}  // namespace wavekv::cpu
