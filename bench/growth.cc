#include "bench/growth.h"

#include <cmath>

namespace wavekv::bench {

std::optional<double> GrowthExponent(const TimesByTokens& times) {
  if (times.size() < 2) return std::nullopt;
  double mean_x = 0.0;
  double mean_y = 0.0;
  for (const auto& [tokens, time] : times) {
    mean_x += std::log(static_cast<double>(tokens)) / static_cast<double>(times.size());
    mean_y += std::log(time) / static_cast<double>(times.size());
  }
  double products = 0.0;
  double squares = 0.0;
  for (const auto& [tokens, time] : times) {
    const double x = std::log(static_cast<double>(tokens)) - mean_x;
    products += x * (std::log(time) - mean_y);
    squares += x * x;
  }
  return products / squares;
}

std::optional<int64_t> Crossover(const TimesByTokens& dense, const TimesByTokens& zones) {
  std::optional<int64_t> smallest;
  for (auto next = dense.rbegin(); next != dense.rend(); ++next) {
    const auto found = zones.find(next->first);
    if (found == zones.end()) continue;
    if (found->second >= next->second) return smallest;
    smallest = next->first;
  }
  return std::nullopt;
}

}  // namespace wavekv::bench
