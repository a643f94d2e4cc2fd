#include "index/seed_centroids.h"

#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <new>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace wavekv {
namespace {

// Enough for a start: all points take part in what follows.
constexpr int64_t kSamplesPerCentroid = 8;
constexpr int kFaissIterations = 2;

// Faiss and OpenBLAS ask OpenMP how many threads to use, a setting that each thread has for itself.
class OneOpenMpThread {
 public:
  OneOpenMpThread() : num_threads_before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneOpenMpThread() { omp_set_num_threads(num_threads_before_); }
  OneOpenMpThread(const OneOpenMpThread&) = delete;
  OneOpenMpThread& operator=(const OneOpenMpThread&) = delete;

 private:
  const int num_threads_before_;
};

// The finaliser of SplitMix64: neighbouring inputs give unrelated outputs.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

double SquaredLength(const float* row, int dim) {
  double sum = 0.0;
  for (int i = 0; i < dim; ++i) sum += static_cast<double>(row[i]) * row[i];
  return sum;
}

// Rows spread evenly: the same number out of each of num_samples equal stretches, because
// neighbouring tokens have similar keys.
std::vector<float> SampleRows(const float* points, int64_t num_points, int dim, int64_t num_samples,
                              uint64_t seed) {
  std::vector<float> sample(num_samples * dim);
  for (int64_t i = 0; i < num_samples; ++i) {
    const int64_t begin = i * num_points / num_samples;
    const int64_t end = (i + 1) * num_points / num_samples;
    const int64_t row = begin + static_cast<int64_t>(Mix(seed ^ Mix(i)) % (end - begin));
    std::copy_n(points + row * dim, dim, sample.data() + i * dim);
  }
  return sample;
}

// Scales every row to unit length; a zero row becomes a unit vector of its own axis.
void NormalizeRows(std::vector<float>& rows, int dim) {
  const int64_t num_rows = static_cast<int64_t>(rows.size()) / dim;
  for (int64_t i = 0; i < num_rows; ++i) {
    float* row = rows.data() + i * dim;
    const double length = std::sqrt(SquaredLength(row, dim));
    if (length > 0.0) {
      for (int j = 0; j < dim; ++j) row[j] = static_cast<float>(row[j] / length);
    } else {
      row[i % dim] = 1.0f;
    }
  }
}

}  // namespace

absl::StatusOr<std::vector<float>> SeedCentroids(const float* points, int64_t num_points, int dim,
                                                 int64_t num_centroids, uint64_t seed) {
  if (num_centroids < 1 || num_centroids > num_points) {
    return absl::InvalidArgumentError(absl::StrCat(
        "num_centroids: expected 1 to num_points = ", num_points, ", got ", num_centroids));
  }
  try {
    const int64_t num_samples = std::min(num_points, num_centroids * kSamplesPerCentroid);
    const std::vector<float> sample = SampleRows(points, num_points, dim, num_samples, seed);
    for (int64_t i = 0; i < num_samples; ++i) {
      // Not only NaN and infinity: Faiss reads out of bounds when an inner product is not a number.
      if (!(SquaredLength(sample.data() + i * dim, dim) < std::numeric_limits<float>::max())) {
        return absl::InvalidArgumentError(
            "points: expected finite rows of finite squared length in fp32");
      }
    }

    faiss::ClusteringParameters parameters;
    parameters.niter = kFaissIterations;
    parameters.spherical = true;
    parameters.verbose = false;
    // Within these bounds Faiss neither prints a warning nor takes a sample of its own.
    parameters.min_points_per_centroid = 1;
    parameters.max_points_per_centroid = static_cast<int>(kSamplesPerCentroid);
    // Faiss adds to the seed, an int.
    parameters.seed = static_cast<int>(Mix(seed) & 0x3fffffff);

    const OneOpenMpThread one_thread;
    faiss::Clustering clustering(dim, static_cast<int>(num_centroids), parameters);
    // Faiss would start from rows at random, which crowd in some parts of the text and miss others;
    // from one row of each part the clusters come out tighter.
    for (int64_t i = 0; i < num_centroids; ++i) {
      const auto row = sample.begin() + (i * num_samples / num_centroids) * dim;
      clustering.centroids.insert(clustering.centroids.end(), row, row + dim);
    }
    faiss::IndexFlatIP index(dim);
    clustering.train(num_samples, sample.data(), index);
    NormalizeRows(clustering.centroids, dim);
    return std::move(clustering.centroids);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("no memory for the seeds of a clustering");
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("Faiss: ", error.what()));
  }
}

}  // namespace wavekv
