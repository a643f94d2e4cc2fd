#include "index/bisect_cluster.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "index/row_math.h"

namespace wavekv {
namespace {

// 2-means of so few points has mostly settled by then.
constexpr int kPasses = 4;

// A half holds at least one in so many of the members.
constexpr int64_t kSmallestShare = 8;

// mean = the mean of the rows that are listed.
void MeanOfRows(const std::vector<float>& rows, int dim, absl::Span<const uint32_t> listed,
                float* mean) {
  std::fill_n(mean, dim, 0.0f);
  for (const uint32_t i : listed) {
    const float* const row = rows.data() + static_cast<int64_t>(i) * dim;
    for (int j = 0; j < dim; ++j) mean[j] += row[j];
  }
  const float inverse = 1.0f / static_cast<float>(listed.size());
  for (int j = 0; j < dim; ++j) mean[j] *= inverse;
}

// Moves those of `order` whose score is above the midpoint to the front, in order, and returns how
// many there are; where one side would be too small, the cut is by rank.
int64_t Cut(const std::vector<float>& scores, float midpoint, std::vector<uint32_t>& order) {
  const auto num_members = static_cast<int64_t>(order.size());
  const int64_t smallest = std::max<int64_t>(num_members / kSmallestShare, 1);
  std::iota(order.begin(), order.end(), 0);
  const auto middle = std::stable_partition(order.begin(), order.end(),
                                            [&](uint32_t i) { return scores[i] > midpoint; });
  const int64_t above = middle - order.begin();
  const int64_t cut = std::clamp(above, smallest, num_members - smallest);
  if (cut == above) return cut;
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return scores[a] > scores[b]; });
  std::sort(order.begin(), order.begin() + cut);
  std::sort(order.begin() + cut, order.end());
  return cut;
}

}  // namespace

Bisection BisectCluster(const float* points, int dim, absl::Span<uint32_t> members) {
  const auto num_members = static_cast<int64_t>(members.size());

  // Rows relative to the cluster's mean: its own width, not its place, decides the rounding.
  std::vector<float> rows(num_members * dim);
  for (int64_t i = 0; i < num_members; ++i) {
    std::copy_n(points + static_cast<int64_t>(members[i]) * dim, dim, rows.data() + i * dim);
  }
  std::vector<uint32_t> order(num_members);
  std::iota(order.begin(), order.end(), 0);
  std::vector<float> centres(2 * dim), direction(dim);
  float* const first = centres.data();
  float* const second = centres.data() + dim;
  MeanOfRows(rows, dim, order, first);
  int64_t farthest = 0;
  float greatest = -1.0f;
  std::vector<float> squared_lengths(num_members);
  for (int64_t i = 0; i < num_members; ++i) {
    float* const row = rows.data() + i * dim;
    for (int j = 0; j < dim; ++j) row[j] -= first[j];
    squared_lengths[i] = DotRows(row, row, dim);
    if (squared_lengths[i] > greatest) {
      greatest = squared_lengths[i];
      farthest = i;
    }
  }

  // The two centres: first the row farthest from the mean and the row farthest from that one.
  std::vector<float> scores(num_members);
  const auto score_rows = [&](const float* by) {
    for (int64_t i = 0; i < num_members; ++i) scores[i] = DotRows(rows.data() + i * dim, by, dim);
  };
  std::copy_n(rows.data() + farthest * dim, dim, first);
  score_rows(first);
  int64_t opposite = 0;
  const auto distance = [&](int64_t i) { return squared_lengths[i] - 2.0f * scores[i]; };
  for (int64_t i = 1; i < num_members; ++i) {
    if (distance(i) > distance(opposite)) opposite = i;
  }
  std::copy_n(rows.data() + opposite * dim, dim, second);

  Bisection result;
  for (int pass = 0; pass < kPasses; ++pass) {
    // A row is nearer to the first centre when its score is above that of the midpoint.
    for (int j = 0; j < dim; ++j) direction[j] = first[j] - second[j];
    const float midpoint = 0.5f * (DotRows(first, first, dim) - DotRows(second, second, dim));
    score_rows(direction.data());
    const auto [least, most] = std::minmax_element(scores.begin(), scores.end());
    if (*least == *most) return {num_members / 2, 0.0f};
    const int64_t cut = Cut(scores, midpoint, order);
    const absl::Span<const uint32_t> halves = order;
    MeanOfRows(rows, dim, halves.subspan(0, cut), first);
    MeanOfRows(rows, dim, halves.subspan(cut), second);
    const bool settled = cut == result.cut;
    result.cut = cut;
    if (settled) break;
  }
  for (int j = 0; j < dim; ++j) direction[j] = first[j] - second[j];
  const auto count = static_cast<float>(result.cut);
  const auto rest = static_cast<float>(num_members - result.cut);
  result.gain = count * rest / (count + rest) * DotRows(direction.data(), direction.data(), dim);
  for (uint32_t& index : order) index = members[index];
  std::copy(order.begin(), order.end(), members.begin());
  return result;
}

}  // namespace wavekv
