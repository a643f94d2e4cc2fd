#include "index/bisect_cluster.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "absl/status/status.h"

namespace wavekv {
namespace {

// 2-means of so few points has settled by then.
constexpr int kPasses = 4;

// A half holds at least one in so many of the members.
constexpr int64_t kSmallestShare = 8;

float Dot(const float* a, const float* b, int dim) {
  float sum = 0.0f;
  for (int i = 0; i < dim; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

absl::StatusOr<int64_t> BisectCluster(const float* points, int dim, absl::Span<uint32_t> members,
                                      Backend& backend) {
  const int64_t num_members = static_cast<int64_t>(members.size());

  // Rows relative to the cluster's mean: its own width, not its place, decides the rounding.
  std::vector<float> mean(dim);
  const uint32_t whole[] = {0, static_cast<uint32_t>(num_members)};
  const UpdateCentroidsTask mean_task = {.points = points,
                                         .dim = dim,
                                         .offsets = whole,
                                         .members = members.data(),
                                         .num_clusters = 1,
                                         .means = mean.data()};
  if (absl::Status status = backend.UpdateCentroids({&mean_task, 1}); !status.ok()) return status;
  std::vector<float> rows(num_members * dim);
  std::vector<float> squared_lengths(num_members);
  for (int64_t i = 0; i < num_members; ++i) {
    const float* point = points + static_cast<int64_t>(members[i]) * dim;
    float* row = rows.data() + i * dim;
    for (int j = 0; j < dim; ++j) row[j] = point[j] - mean[j];
    squared_lengths[i] = Dot(row, row, dim);
  }

  // The inner product of every row with one direction.
  std::vector<float> scores(num_members);
  std::vector<int32_t> unused_assignment(num_members);
  const auto score_rows = [&](const float* direction) {
    const AssignClustersTask task = {.points = rows.data(),
                                     .num_points = num_members,
                                     .centroids = direction,
                                     .num_centroids = 1,
                                     .dim = dim,
                                     .assignment = unused_assignment.data(),
                                     .scores = scores.data()};
    return backend.AssignClusters({&task, 1});
  };

  // The two centres: first the row farthest from the mean and the row farthest from that one.
  std::vector<float> centres(2 * dim);
  float* const first = centres.data();
  float* const second = centres.data() + dim;
  const auto farthest =
      std::max_element(squared_lengths.begin(), squared_lengths.end()) - squared_lengths.begin();
  std::copy_n(rows.data() + farthest * dim, dim, first);
  if (absl::Status status = score_rows(first); !status.ok()) return status;
  int64_t opposite = 0;
  const auto distance = [&](int64_t i) { return squared_lengths[i] - 2.0f * scores[i]; };
  for (int64_t i = 1; i < num_members; ++i) {
    if (distance(i) > distance(opposite)) opposite = i;
  }
  std::copy_n(rows.data() + opposite * dim, dim, second);

  const int64_t smallest = std::max<int64_t>(num_members / kSmallestShare, 1);
  std::vector<uint32_t> order(num_members);
  std::vector<float> direction(dim);
  int64_t cut = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    // A row is nearer to the first centre when its score is above that of the midpoint.
    for (int j = 0; j < dim; ++j) direction[j] = first[j] - second[j];
    const float midpoint = 0.5f * (Dot(first, first, dim) - Dot(second, second, dim));
    if (absl::Status status = score_rows(direction.data()); !status.ok()) return status;
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t a, uint32_t b) { return scores[a] > scores[b]; });
    if (scores[order.front()] == scores[order.back()]) {
      cut = num_members / 2;
      break;
    }
    cut = std::partition_point(order.begin(), order.end(),
                               [&](uint32_t i) { return scores[i] > midpoint; }) -
          order.begin();
    cut = std::clamp(cut, smallest, num_members - smallest);

    const uint32_t halves[] = {0, static_cast<uint32_t>(cut), static_cast<uint32_t>(num_members)};
    const UpdateCentroidsTask halves_task = {.points = rows.data(),
                                             .dim = dim,
                                             .offsets = halves,
                                             .members = order.data(),
                                             .num_clusters = 2,
                                             .means = centres.data()};
    if (absl::Status status = backend.UpdateCentroids({&halves_task, 1}); !status.ok()) {
      return status;
    }
  }

  for (uint32_t& index : order) index = members[index];
  std::copy(order.begin(), order.end(), members.begin());
  std::sort(members.begin(), members.begin() + cut);
  std::sort(members.begin() + cut, members.end());
  return cut;
}

}  // namespace wavekv
