#include "tests/storage_cases/answer_quality.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>

namespace wavekv::testing {

std::vector<double> RelativeErrors(const std::vector<float>& got,
                                   const std::vector<double>& reference, int dim) {
  std::vector<double> errors;
  for (size_t first = 0; first < got.size(); first += dim) {
    double difference2 = 0.0;
    double norm2 = 0.0;
    for (size_t i = first; i < first + dim; ++i) {
      difference2 += (got[i] - reference[i]) * (got[i] - reference[i]);
      norm2 += reference[i] * reference[i];
    }
    errors.push_back(std::sqrt(norm2 > 0.0 ? difference2 / norm2 : difference2));
  }
  return errors;
}

double Largest(const std::vector<double>& errors) {
  double worst = 0.0;
  for (const double error : errors) {
    if (std::isnan(error)) return error;
    worst = std::max(worst, error);
  }
  return worst;
}

double LargestDifference(const std::vector<float>& got, const std::vector<double>& reference) {
  std::vector<double> differences;
  for (size_t i = 0; i < got.size(); ++i) {
    differences.push_back(got[i] == reference[i] ? 0.0 : std::abs(got[i] - reference[i]));
  }
  return Largest(differences);
}

void AddRetrievalQuality(const std::vector<double>& weights, const std::vector<bool>& indexed,
                         const std::vector<bool>& retrieved, int64_t recall_tokens, Mean& recall,
                         Mean& mass) {
  if (weights.empty()) return;
  double exact_mass = 0.0;
  std::vector<double> indexed_weights;
  for (size_t token = 0; token < weights.size(); ++token) {
    if (indexed[token]) indexed_weights.push_back(weights[token]);
    if (!indexed[token] || retrieved[token]) exact_mass += weights[token];
  }
  mass.Add(exact_mass);

  const auto top = std::min<int64_t>(recall_tokens, static_cast<int64_t>(indexed_weights.size()));
  if (top == 0) return;
  std::nth_element(indexed_weights.begin(), indexed_weights.begin() + (top - 1),
                   indexed_weights.end(), std::greater<>());
  const double least = indexed_weights[top - 1];
  int64_t found = 0;
  for (size_t token = 0; token < weights.size(); ++token) {
    if (indexed[token] && retrieved[token] && weights[token] >= least) ++found;
  }
  recall.Add(static_cast<double>(std::min(found, top)) / static_cast<double>(top));
}

}  // namespace wavekv::testing
