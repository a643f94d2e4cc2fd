// The operations that clustering needs, written as their contracts say and nothing more: a second
// implementation to compare with.
#ifndef WAVEKV_TESTS_INDEX_NAIVE_BACKEND_H_
#define WAVEKV_TESTS_INDEX_NAIVE_BACKEND_H_

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "absl/status/status.h"
#include "compute/backend.h"
#include "storage/float16.h"

namespace wavekv {

class NaiveBackend : public Backend {
 public:
  absl::Status ConvertRows(absl::Span<const ConvertRowsTask> tasks) override {
    for (const ConvertRowsTask& task : tasks) {
      bool all_finite = true;
      for (int64_t row = 0; row < task.num_rows * task.num_heads; ++row) {
        const int64_t r = row / task.num_heads, h = row % task.num_heads;
        for (int64_t i = 0; i < task.row_elements; ++i) {
          const int64_t to = r * task.target_stride + h * task.target_head_stride + i;
          const float value = LoadElement(task.source, task.source_dtype,
                                          r * task.source_stride + h * task.source_head_stride + i);
          StoreElement(task.target, task.target_dtype, to, value * task.scale);
          all_finite &= std::isfinite(value) &&
                        std::isfinite(LoadElement(task.target, task.target_dtype, to));
        }
      }
      if (task.all_finite != nullptr) *task.all_finite = all_finite;
    }
    return absl::OkStatus();
  }

  absl::Status SumRows(absl::Span<const SumRowsTask> tasks) override {
    for (const SumRowsTask& task : tasks) {
      for (int64_t i = 0; i < task.num_rows * task.dim; ++i) {
        task.sums[i % task.dim] += task.rows[i];
        *task.largest = std::max(*task.largest, std::abs(task.rows[i]));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CentreRows(absl::Span<const CentreRowsTask> tasks) override {
    for (const CentreRowsTask& task : tasks) {
      for (int64_t i = 0; i < task.num_rows; ++i) {
        float* const row = task.rows + i * task.dim;
        float largest = 0.0f;
        double squared_length = 0.0;
        for (int j = 0; j < task.dim; ++j) {
          row[j] = row[j] * task.scale - task.mean[j];
          largest = std::max(largest, std::abs(row[j]));
          squared_length += static_cast<double>(row[j]) * row[j];
        }
        task.squared_lengths[i] = static_cast<float>(squared_length);
        const double unit = largest > 1e-30f ? 4096.0 / largest : 0.0;
        for (int j = 0; j < task.dim; ++j) {
          task.rounded[i * task.dim + j] = static_cast<int16_t>(std::floor(row[j] * unit + 0.5));
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status AssignClusters(absl::Span<const AssignClustersTask> tasks) override {
    for (const AssignClustersTask& task : tasks) {
      for (int64_t i = 0; i < task.num_points; ++i) {
        const int64_t point = task.point_ids == nullptr ? i : task.point_ids[i];
        int64_t best = 0;
        for (int64_t c = 0; c < task.num_centroids; ++c) {
          const int64_t centroid = task.centroid_ids == nullptr ? c : task.centroid_ids[c];
          int64_t product = 0;
          for (int j = 0; j < task.dim; ++j) {
            product += int64_t{task.points[point * task.dim + j]} *
                       task.centroids[centroid * task.dim + j];
          }
          if (task.products != nullptr) {
            task.products[i * task.num_centroids + c] = static_cast<int32_t>(product);
          }
          if (c == 0 || product > best) {
            best = product;
            task.assignment[point] = static_cast<int32_t>(centroid);
          }
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status ListGreatest(absl::Span<const ListGreatestTask> tasks) override {
    for (const ListGreatestTask& task : tasks) {
      for (int64_t r = 0; r < task.num_rows; ++r) {
        const int32_t* const values = task.values + r * task.num_values;
        std::vector<uint32_t> places(task.num_values);
        std::iota(places.begin(), places.end(), 0u);
        std::stable_sort(places.begin(), places.end(),
                         [&](uint32_t a, uint32_t b) { return values[a] > values[b]; });
        std::sort(places.begin(), places.begin() + task.num_listed);
        std::copy_n(places.begin(), task.num_listed, task.lists + r * task.num_listed);
      }
    }
    return absl::OkStatus();
  }

  absl::Status UpdateCentroids(absl::Span<const UpdateCentroidsTask> tasks) override {
    for (const UpdateCentroidsTask& task : tasks) {
      for (int64_t c = 0; c < task.num_clusters; ++c) {
        const uint32_t begin = task.offsets[c];
        const uint32_t end = task.offsets[c + 1];
        if (begin == end) continue;
        std::vector<double> mean(task.dim, 0.0);
        for (uint32_t m = begin; m < end; ++m) {
          const float* point = task.points + static_cast<int64_t>(task.members[m]) * task.dim;
          for (int j = 0; j < task.dim; ++j) mean[j] += point[j];
        }
        double divisor = end - begin;
        double square = 0.0;
        for (const double x : mean) square += x * x;
        if (task.lengths != nullptr) {
          task.lengths[c] = static_cast<float>(std::sqrt(square) / (end - begin));
        }
        if (task.normalize && square > 0.0) divisor = std::sqrt(square);
        for (int j = 0; j < task.dim; ++j) {
          task.means[c * task.dim + j] = static_cast<float>(mean[j] / divisor);
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status ScoreClusters(absl::Span<const ScoreClustersTask>) override { return Missing(); }
  absl::Status ScoreSupers(absl::Span<const ScoreSupersTask>) override { return Missing(); }
  absl::Status SelectClusters(absl::Span<const SelectClustersTask>) override { return Missing(); }
  absl::Status RotateRows(absl::Span<const RotateRowsTask>) override { return Missing(); }
  absl::Status ScoreTokens(absl::Span<const ScoreTokensTask>) override { return Missing(); }
  absl::Status ChooseTokens(absl::Span<const ChooseTokensTask>) override { return Missing(); }
  absl::Status AttendRows(absl::Span<const AttendRowsTask>) override { return Missing(); }
  absl::Status EstimateClusters(absl::Span<const EstimateClustersTask>) override {
    return Missing();
  }
  absl::Status MergeStates(absl::Span<const MergeStatesTask>) override { return Missing(); }
  absl::Status WriteIndex(absl::Span<const WriteIndexTask>) override { return Missing(); }

 private:
  static absl::Status Missing() { return absl::UnimplementedError("not needed for clustering"); }
};

}  // namespace wavekv

#endif  // WAVEKV_TESTS_INDEX_NAIVE_BACKEND_H_
