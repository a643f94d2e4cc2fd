#include "index/refine_clusters.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "index/bisect_cluster.h"
#include "index/group_members.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

// Clusters that a point may choose among, its own one of them: few in the rounds, which exchange
// clusters, more in the last pass, for points that belong to none of the nearest.
constexpr int64_t kNear = 32;
constexpr int64_t kNearLast = 128;

// Of the clusters, one in so many of the widest is tried for a cut in each exchange.
constexpr int64_t kTriedShare = 3;

// Clusters whose products with all others are at hand at once: bounds the memory.
constexpr int64_t kRowsAtOnce = 32;

// Fewer members are not worth a cut.
constexpr int64_t kCutLeast = 4;

// Everything of one clustering that rounds pass on.
class Refinement {
 public:
  Refinement(const ClusterPoints& points, int64_t num_clusters, const RefineOptions& options,
             Backend& backend, absl::Span<int32_t> assignment)
      : points_(points),
        dim_(points.dim),
        num_clusters_(num_clusters),
        options_(options),
        backend_(backend),
        assignment_(assignment),
        centroids_(num_clusters * points.dim),
        lengths_(num_clusters),
        near_(num_clusters * std::min(kNearLast, num_clusters)),
        near_products_(near_.size()) {}

  absl::Status Run() {
    for (int round = 0; round <= options_.rounds; ++round) {
      clusters_ = GroupMembers(assignment_, num_clusters_);
      WAVEKV_RETURN_IF_ERROR(UpdateCentroids());
      const bool last = round == options_.rounds;
      num_near_ = std::min(last ? kNearLast : kNear, num_clusters_);
      WAVEKV_RETURN_IF_ERROR(FindNearClusters());
      if (!last) WAVEKV_RETURN_IF_ERROR(Exchange());
      WAVEKV_RETURN_IF_ERROR(ChooseAmongNear());
    }
    return absl::OkStatus();
  }

 private:
  // Two near clusters that may become one, or an empty one alone (a == b).
  struct Join {
    float cost;  // by how much the sum of squared distances grows
    uint32_t a;
    uint32_t b;
  };

  // A product of centroids of length 1.
  static constexpr auto kOne = static_cast<int32_t>(kCentroidUnit * kCentroidUnit);

  uint32_t* near(int64_t cluster) { return near_.data() + cluster * num_near_; }
  // Of their centroids with that of the cluster.
  int32_t* near_products(int64_t cluster) { return near_products_.data() + cluster * num_near_; }

  absl::Status UpdateCentroids() {
    const UpdateCentroidsTask task = {.points = points_.rows,
                                      .dim = dim_,
                                      .offsets = clusters_.offsets.data(),
                                      .members = clusters_.members.data(),
                                      .num_clusters = num_clusters_,
                                      .normalize = true,
                                      .means = centroids_.data(),
                                      .lengths = lengths_.data()};
    return backend_.UpdateCentroids({&task, 1});
  }

  // For each cluster the num_near_ of greatest product with its centroid, in ascending order.
  absl::Status FindNearClusters() {
    RoundCentroids(centroids_, dim_, rounded_);
    std::vector<int32_t> unused(kRowsAtOnce), products(kRowsAtOnce * num_clusters_);
    for (int64_t begin = 0; begin < num_clusters_; begin += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, num_clusters_ - begin);
      const AssignClustersTask multiply = {.points = rounded_.data() + begin * dim_,
                                           .num_points = count,
                                           .centroids = rounded_.data(),
                                           .num_centroids = num_clusters_,
                                           .dim = dim_,
                                           .assignment = unused.data(),
                                           .products = products.data()};
      WAVEKV_RETURN_IF_ERROR(backend_.AssignClusters({&multiply, 1}));
      const auto row = [&](int64_t cluster) {
        return &products[(cluster - begin) * num_clusters_];
      };
      // Its own among them, also if it is zero.
      for (int64_t c = begin; c < begin + count; ++c) row(c)[c] = 2 * kOne;
      const ListGreatestTask list = {.values = products.data(),
                                     .num_rows = count,
                                     .num_values = num_clusters_,
                                     .num_listed = num_near_,
                                     .lists = near(begin)};
      WAVEKV_RETURN_IF_ERROR(backend_.ListGreatest({&list, 1}));
      for (int64_t c = begin; c < begin + count; ++c) {
        for (int64_t i = 0; i < num_near_; ++i) near_products(c)[i] = row(c)[near(c)[i]];
      }
    }
    return absl::OkStatus();
  }

  absl::Status ChooseAmongNear() {
    std::vector<AssignClustersTask> tasks;
    tasks.reserve(num_clusters_);
    for (int64_t c = 0; c < num_clusters_; ++c) {
      if (clusters_.size(c) == 0) continue;
      tasks.push_back({.points = points_.rounded,
                       .point_ids = clusters_.of(c).data(),
                       .num_points = clusters_.size(c),
                       .centroids = rounded_.data(),
                       .centroid_ids = near(c),
                       .num_centroids = num_near_,
                       .dim = dim_,
                       .assignment = assignment_.data()});
    }
    return backend_.AssignClusters(tasks);
  }

  // Each cluster with the one that it is cheapest to join with, cheapest first.
  std::vector<Join> ListJoins() {
    std::vector<Join> joins;
    for (uint32_t c = 0; c < num_clusters_; ++c) {
      const auto size = static_cast<float>(clusters_.size(c));
      if (size == 0.0f) {
        joins.push_back({0.0f, c, c});
        continue;
      }
      Join best = {std::numeric_limits<float>::infinity(), c, c};
      for (int64_t i = 0; i < num_near_; ++i) {
        const uint32_t other = near(c)[i];
        const auto other_size = static_cast<float>(clusters_.size(other));
        if (other == c || other_size == 0.0f) continue;
        if (clusters_.size(c) + clusters_.size(other) > options_.members_max) continue;
        const float a = lengths_[c], b = lengths_[other];
        const float cosine = static_cast<float>(near_products(c)[i]) * (1.0f / kOne);
        const float squared_distance = a * a + b * b - 2.0f * a * b * cosine;
        const float cost = size * other_size / (size + other_size) * squared_distance;
        if (cost < best.cost) best = {cost, c, other};
      }
      if (best.a != best.b) joins.push_back(best);
    }
    std::sort(joins.begin(), joins.end(), [](const Join& x, const Join& y) {
      return x.cost != y.cost ? x.cost < y.cost : x.a < y.a;
    });
    return joins;
  }

  // Those of the greatest sums of squared distances to their means, greatest first.
  std::vector<uint32_t> ListWidest() const {
    std::vector<float> widths(num_clusters_);
    for (int64_t c = 0; c < num_clusters_; ++c) {
      float squares = 0.0f;
      for (const uint32_t point : clusters_.of(c)) squares += points_.squared_lengths[point];
      widths[c] = squares - static_cast<float>(clusters_.size(c)) * lengths_[c] * lengths_[c];
    }
    std::vector<uint32_t> widest(num_clusters_);
    std::iota(widest.begin(), widest.end(), 0u);
    const auto wider = [&](uint32_t a, uint32_t b) {
      return widths[a] != widths[b] ? widths[a] > widths[b] : a < b;
    };
    const int64_t count = std::max<int64_t>(num_clusters_ / kTriedShare, 1);
    std::partial_sort(widest.begin(), widest.begin() + count, widest.end(), wider);
    widest.resize(count);
    return widest;
  }

  absl::Status Exchange() {
    const std::vector<Join> joins = ListJoins();
    std::vector<bool> taken(num_clusters_);
    std::vector<uint32_t> changed;
    std::vector<uint32_t> halves;
    auto join = joins.begin();
    for (const uint32_t wide : ListWidest()) {
      while (join != joins.end() && (taken[join->a] || taken[join->b])) ++join;
      if (join == joins.end()) break;
      if (taken[wide] || wide == join->a || wide == join->b) continue;
      if (clusters_.size(wide) < kCutLeast) continue;
      const absl::Span<const uint32_t> members = clusters_.of(wide);
      halves.assign(members.begin(), members.end());
      backend_.Yield();
      const Bisection cut = BisectCluster(points_.rows, dim_, absl::MakeSpan(halves));
      if (!(cut.gain > join->cost)) continue;
      for (const uint32_t point : clusters_.of(join->b)) assignment_[point] = join->a;
      for (size_t i = cut.cut; i < halves.size(); ++i) assignment_[halves[i]] = join->b;
      for (const uint32_t cluster : {wide, join->a, join->b}) {
        if (!taken[cluster]) changed.push_back(cluster);
        taken[cluster] = true;
      }
      LookNear(wide, join->b);
    }
    if (changed.empty()) return absl::OkStatus();
    clusters_ = GroupMembers(assignment_, num_clusters_);
    return UpdateCentroidsOf(changed);
  }

  // `moved` now is the second half of `wide`, whose members look at both.
  void LookNear(uint32_t wide, uint32_t moved) {
    uint32_t* const begin = near(wide);
    uint32_t* const end = begin + num_near_;
    if (std::find(begin, end, moved) == end) {
      const int32_t* const products = near_products(wide);
      begin[std::min_element(products, products + num_near_) - products] = moved;
      std::sort(begin, end);  // its products are not asked for again
    }
    std::copy(begin, end, near(moved));
  }

  absl::Status UpdateCentroidsOf(absl::Span<const uint32_t> changed) {
    Members members;
    members.offsets.push_back(0);
    for (const uint32_t cluster : changed) {
      const absl::Span<const uint32_t> of = clusters_.of(cluster);
      members.members.insert(members.members.end(), of.begin(), of.end());
      members.offsets.push_back(static_cast<uint32_t>(members.members.size()));
    }
    std::vector<float> centroids(changed.size() * dim_), lengths(changed.size());
    const UpdateCentroidsTask task = {.points = points_.rows,
                                      .dim = dim_,
                                      .offsets = members.offsets.data(),
                                      .members = members.members.data(),
                                      .num_clusters = static_cast<int64_t>(changed.size()),
                                      .normalize = true,
                                      .means = centroids.data(),
                                      .lengths = lengths.data()};
    WAVEKV_RETURN_IF_ERROR(backend_.UpdateCentroids({&task, 1}));
    for (size_t i = 0; i < changed.size(); ++i) {
      const int64_t to = int64_t{changed[i]} * dim_;
      std::copy_n(&centroids[i * dim_], dim_, &centroids_[to]);
      RoundRow(&centroids_[to], dim_, kCentroidUnit, &rounded_[to]);
      lengths_[changed[i]] = lengths[i];
    }
    return absl::OkStatus();
  }

  const ClusterPoints points_;
  const int dim_;
  const int64_t num_clusters_;
  const RefineOptions options_;
  Backend& backend_;
  const absl::Span<int32_t> assignment_;
  Members clusters_;
  std::vector<float> centroids_;  // of unit length
  std::vector<int16_t> rounded_;  // the same
  std::vector<float> lengths_;    // of the means
  int64_t num_near_ = 0;          // of each cluster, in this round
  std::vector<uint32_t> near_;
  std::vector<int32_t> near_products_;
};

}  // namespace

absl::Status RefineClusters(const ClusterPoints& points, int64_t num_clusters,
                            const RefineOptions& options, Backend& backend,
                            absl::Span<int32_t> assignment) {
  return Refinement(points, num_clusters, options, backend, assignment).Run();
}

}  // namespace wavekv
