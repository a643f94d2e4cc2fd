#include "tests/index/index_quality.h"

#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

namespace wavekv {
namespace {

double Dot(const float* a, const double* b, int dim) {
  double sum = 0.0;
  for (int j = 0; j < dim; ++j) sum += a[j] * b[j];
  return sum;
}

// Mean of each cluster's rows, [num_clusters, dim].
std::vector<double> ClusterMeans(const Clustering& clustering, absl::Span<const float> rows,
                                 int dim) {
  std::vector<double> means(clustering.num_clusters() * dim, 0.0);
  for (int64_t c = 0; c < clustering.num_clusters(); ++c) {
    double* mean = means.data() + c * dim;
    for (uint32_t m = clustering.offsets[c]; m < clustering.offsets[c + 1]; ++m) {
      const float* row = rows.data() + static_cast<int64_t>(clustering.members[m]) * dim;
      for (int j = 0; j < dim; ++j) mean[j] += row[j];
    }
    for (int j = 0; j < dim; ++j) mean[j] /= clustering.offsets[c + 1] - clustering.offsets[c];
  }
  return means;
}

}  // namespace

TextLikeAttention::TextLikeAttention(int64_t num_tokens, int64_t num_queries, int dim,
                                     uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> gaussian;
  std::uniform_real_distribution<double> uniform;
  const auto gaussians = [&](int64_t count, float deviation) {
    std::vector<float> result(count);
    for (float& x : result) x = deviation * gaussian(engine);
    return result;
  };
  const int64_t num_words = num_tokens / 4;
  const std::vector<float> words = gaussians(num_words * dim, 0.6f);
  const std::vector<float> offset = gaussians(dim, 0.5f);
  std::vector<float> topic = gaussians(dim, 0.8f);
  constexpr float kTopicKept = 0.97f;  // half forgotten after 23 tokens
  const float topic_gained = 0.8f * std::sqrt(1.0f - kTopicKept * kTopicKept);
  for (int64_t t = 0; t < num_tokens; ++t) {
    // Zipf's law: the logarithm of the rank is uniform.
    const auto word = static_cast<int64_t>(std::pow(num_words, uniform(engine))) - 1;
    for (int j = 0; j < dim; ++j) {
      topic[j] = kTopicKept * topic[j] + topic_gained * gaussian(engine);
      keys.push_back(offset[j] + topic[j] + words[word * dim + j] + 0.5f * gaussian(engine));
    }
  }
  values = gaussians(num_tokens * dim, 1.0f);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  for (int64_t i = 0; i < num_queries; ++i) {
    const auto token = static_cast<int64_t>(uniform(engine) * static_cast<double>(num_tokens));
    for (int j = 0; j < dim; ++j) {
      queries.push_back(scale * (keys[token * dim + j] + gaussian(engine)));
    }
  }
}

IndexQuality MeasureIndexQuality(const Clustering& clustering, absl::Span<const float> keys,
                                 absl::Span<const float> values, absl::Span<const float> queries,
                                 int dim, double token_budget_ratio) {
  const int64_t num_tokens = static_cast<int64_t>(keys.size()) / dim;
  const int64_t num_queries = static_cast<int64_t>(queries.size()) / dim;
  const int64_t num_clusters = clustering.num_clusters();
  const std::vector<double> centroids = ClusterMeans(clustering, keys, dim);
  const std::vector<double> value_means = ClusterMeans(clustering, values, dim);

  IndexQuality quality;
  for (int64_t c = 0; c < num_clusters; ++c) {
    for (uint32_t m = clustering.offsets[c]; m < clustering.offsets[c + 1]; ++m) {
      for (int j = 0; j < dim; ++j) {
        const double difference =
            keys[static_cast<int64_t>(clustering.members[m]) * dim + j] - centroids[c * dim + j];
        quality.mean_spread += difference * difference / num_tokens;
      }
    }
  }

  std::vector<double> masses(num_tokens);
  std::vector<double> estimates(num_clusters);
  for (int64_t i = 0; i < num_queries; ++i) {
    const std::vector<double> query(queries.begin() + i * dim, queries.begin() + (i + 1) * dim);
    for (int64_t t = 0; t < num_tokens; ++t) masses[t] = Dot(&keys[t * dim], query.data(), dim);
    const double largest = *std::max_element(masses.begin(), masses.end());
    for (double& mass : masses) mass = std::exp(mass - largest);
    const double total = std::accumulate(masses.begin(), masses.end(), 0.0);
    for (int64_t c = 0; c < num_clusters; ++c) {
      double score = 0.0;
      for (int j = 0; j < dim; ++j) score += query[j] * centroids[c * dim + j];
      estimates[c] =
          std::exp(score - largest) * (clustering.offsets[c + 1] - clustering.offsets[c]);
    }

    std::vector<int64_t> order(num_clusters);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return estimates[a] > estimates[b]; });
    std::vector<bool> retrieved(num_tokens, false);
    std::vector<double> output(dim, 0.0);
    double denominator = 0.0;
    double captured = 0.0;
    int64_t num_retrieved = 0;
    for (const int64_t c : order) {
      if (static_cast<double>(num_retrieved) < token_budget_ratio * num_tokens) {
        for (uint32_t m = clustering.offsets[c]; m < clustering.offsets[c + 1]; ++m) {
          const int64_t token = clustering.members[m];
          retrieved[token] = true;
          captured += masses[token];
          ++num_retrieved;
          for (int j = 0; j < dim; ++j) output[j] += masses[token] * values[token * dim + j];
        }
      } else {
        denominator += estimates[c];
        for (int j = 0; j < dim; ++j) output[j] += estimates[c] * value_means[c * dim + j];
      }
    }
    denominator += captured;

    double square_error = 0.0;
    double square_exact = 0.0;
    for (int j = 0; j < dim; ++j) {
      double exact = 0.0;
      for (int64_t t = 0; t < num_tokens; ++t) exact += masses[t] * values[t * dim + j];
      exact /= total;
      square_exact += exact * exact;
      square_error += (output[j] / denominator - exact) * (output[j] / denominator - exact);
    }

    const int64_t num_top = std::min<int64_t>(100, num_tokens);
    std::vector<int64_t> top(num_tokens);
    std::iota(top.begin(), top.end(), 0);
    std::partial_sort(top.begin(), top.begin() + num_top, top.end(),
                      [&](int64_t a, int64_t b) { return masses[a] > masses[b]; });
    const auto hits = std::count_if(top.begin(), top.begin() + num_top,
                                    [&](int64_t token) { return retrieved[token]; });

    quality.captured_mass += captured / total / num_queries;
    quality.recall_at_100 += static_cast<double>(hits) / num_top / num_queries;
    quality.output_error += std::sqrt(square_error / square_exact) / num_queries;
  }
  return quality;
}

Clustering ClusterByFaiss(absl::Span<const float> keys, int dim, int64_t num_clusters,
                          int num_iterations, int seed) {
  const int64_t num_tokens = static_cast<int64_t>(keys.size()) / dim;
  std::vector<double> mean(dim, 0.0);
  for (int64_t i = 0; i < num_tokens * dim; ++i) mean[i % dim] += keys[i] / num_tokens;
  std::vector<float> points(keys.begin(), keys.end());
  for (int64_t i = 0; i < num_tokens * dim; ++i) points[i] -= static_cast<float>(mean[i % dim]);

  faiss::ClusteringParameters parameters;
  parameters.niter = num_iterations;
  parameters.spherical = true;
  parameters.seed = seed;
  parameters.min_points_per_centroid = 1;
  parameters.max_points_per_centroid = static_cast<int>(num_tokens);
  const int num_threads_before = omp_get_max_threads();
  omp_set_num_threads(1);
  faiss::Clustering kmeans(dim, static_cast<int>(num_clusters), parameters);
  faiss::IndexFlatIP index(dim);
  kmeans.train(num_tokens, points.data(), index);
  std::vector<float> scores(num_tokens);
  std::vector<faiss::Index::idx_t> nearest(num_tokens);
  index.search(num_tokens, points.data(), 1, scores.data(), nearest.data());
  omp_set_num_threads(num_threads_before);

  std::vector<std::vector<uint32_t>> clusters(num_clusters);
  for (int64_t i = 0; i < num_tokens; ++i) clusters[nearest[i]].push_back(i);
  Clustering clustering;
  clustering.offsets.push_back(0);
  for (const std::vector<uint32_t>& cluster : clusters) {
    if (cluster.empty()) continue;
    clustering.members.insert(clustering.members.end(), cluster.begin(), cluster.end());
    clustering.offsets.push_back(static_cast<uint32_t>(clustering.members.size()));
  }
  return clustering;
}

}  // namespace wavekv
