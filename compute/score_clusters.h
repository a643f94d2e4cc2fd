#ifndef WAVEKV_COMPUTE_SCORE_CLUSTERS_H_
#define WAVEKV_COMPUTE_SCORE_CLUSTERS_H_

#include <cstdint>

#include "storage/cluster_index.h"

namespace wavekv {

// Log-mass that each query expects of each cluster of one segment: m_i = q . c_i + ln(n_i).
//
// By Jensen's inequality exp(m_i) never exceeds the cluster's true mass sum_j exp(q . k_j).
//
// Shapes: queries [num_queries, head_dim_k] fp32, already multiplied by the softmax scale: the GQA
// group's heads, which share each centroid read; log_masses [num_queries, index->num_clusters], row
// h at log_masses + h * log_masses_stride. Source: RetroInfer (arXiv 2505.02922), "Tripartite
// attention approximation"; ours adds ln(n_i) to the rank.
struct ScoreClustersTask {
  const float* queries = nullptr;
  int num_queries = 0;
  const ClusterIndex* index = nullptr;
  float* log_masses = nullptr;
  int64_t log_masses_stride = 0;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_SCORE_CLUSTERS_H_
