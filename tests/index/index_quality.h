// How well a clustering serves a set of queries, by definition and in double precision; data to
// measure it on; and Faiss's own k-means to measure ours against.
#ifndef WAVEKV_TESTS_INDEX_INDEX_QUALITY_H_
#define WAVEKV_TESTS_INDEX_INDEX_QUALITY_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "index/cluster_segment.h"

namespace wavekv {

// Keys, values [num_tokens, dim] and queries [num_queries, dim], scaled, that resemble those of a
// language model: keys are the sum of a common offset, a topic that changes slowly along the text,
// a word that recurs (few often, most rarely) and noise; a query seeks the key of some token.
struct TextLikeAttention {
  TextLikeAttention(int64_t num_tokens, int64_t num_queries, int dim, uint64_t seed);

  std::vector<float> keys;
  std::vector<float> values;
  std::vector<float> queries;
};

// Means over the queries. Clusters are ranked by exp(q . c) n and retrieved in that order while
// they hold less than the budget.
struct IndexQuality {
  double captured_mass = 0.0;  // share of the attention mass that the retrieved tokens hold
  double recall_at_100 = 0.0;  // share of the 100 heaviest tokens that were retrieved
  double output_error = 0.0;   // |output - exact| / |exact|, all other clusters estimated
  double mean_spread = 0.0;    // mean squared distance of a key from its cluster's mean
};

// Shapes: keys [num_tokens, dim], values [num_tokens, dim], queries [num_queries, dim], multiplied
// by the softmax scale.
IndexQuality MeasureIndexQuality(const Clustering& clustering, absl::Span<const float> keys,
                                 absl::Span<const float> values, absl::Span<const float> queries,
                                 int dim, double token_budget_ratio);

// faiss::Clustering (spherical) of all keys relative to their mean, then each key to its nearest
// centroid; one thread, `seed` as Faiss takes it. Empty clusters are left out.
Clustering ClusterByFaiss(absl::Span<const float> keys, int dim, int64_t num_clusters,
                          int num_iterations, int seed);

}  // namespace wavekv

#endif  // WAVEKV_TESTS_INDEX_INDEX_QUALITY_H_
