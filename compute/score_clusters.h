#ifndef WAVEKV_COMPUTE_SCORE_CLUSTERS_H_
#define WAVEKV_COMPUTE_SCORE_CLUSTERS_H_

#include <cstdint>

#include "compute/zone.h"
#include "storage/cluster_index.h"

namespace wavekv {

// Log-mass that each query expects of each cluster of one segment, and the score to rank it by.
//
//   b_i = q . c_i + ln(n_i)                 n_i e^{q . c_i} never exceeds the true mass (Jensen)
//   x_i = |q|^2 key_spread_i / head_dim_k   variance of the logit inside the cluster, if its keys
//                                           spread alike in all directions
//   g_i = min(x_i / 2, kLogMassGainMax)     what the bound misses, to second order; capped,
//                                           because the expansion overshoots for wide clusters
//   log-mass m_i = b_i, or b_i + g_i for MassEstimate::kSecondOrder
//   rank score   r_i = b_i + g_i + sqrt(x_i), optimistic by one standard deviation: a wide cluster
//                      may hide a token that its centroid does not recommend;
//                or q . c_i alone for Ranking::kCentroid
//
// Clusters of a super-cluster that is not opened are not scored: each takes its tokens' share of
// the super-cluster's mass, m_i = super's log-mass + ln(n_i / super's size), and the rank score
// -infinity.
//
// Where means are stored as integers, q may be rounded for its products with them (not with the
// segment's mean): an element by at most kQueryRounding times the query's greatest magnitude.
//
// Shapes: queries [num_queries, head_dim_k] fp32, multiplied by the softmax scale and rotated
// (rotate_rows.h): the GQA group's heads, which share each centroid read; log_masses and
// rank_scores [num_queries, index->num_clusters], row h at h * stride. rank_scores == nullptr: not
// wanted. super_zones [index->num_supers], kSketch for those that are opened, with super_log_masses
// [num_queries, index->num_supers], row h at h * super_stride; nullptr: all are opened. Source:
// RetroInfer (arXiv 2505.02922), "Tripartite attention approximation", ranks by q . c_i.
inline constexpr float kLogMassGainMax = 3.0f;
inline constexpr double kQueryRounding = 1.0 / 32766.0;

enum class Ranking : uint8_t { kOptimistic = 1, kCentroid = 2 };

struct ScoreClustersTask {
  const float* queries = nullptr;
  int num_queries = 0;
  const ClusterIndex* index = nullptr;
  float* log_masses = nullptr;
  int64_t stride = 0;
  MassEstimate mass = MassEstimate::kLowerBound;
  Ranking ranking = Ranking::kOptimistic;
  float* rank_scores = nullptr;
  const Zone* super_zones = nullptr;
  const float* super_log_masses = nullptr;
  int64_t super_stride = 0;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_SCORE_CLUSTERS_H_
