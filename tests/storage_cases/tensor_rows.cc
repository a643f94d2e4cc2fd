#include "tests/storage_cases/tensor_rows.h"

#include <cmath>
#include <initializer_list>

namespace wavekv::testing {
namespace {

// Which numbers of a source are drawn: those of rows, of centres, or a row's choice of its centre.
enum Stream : uint64_t { kRow = 1, kCentre = 2, kChoice = 3 };

uint64_t Hash(std::initializer_list<uint64_t> words) {
  uint64_t hash = 0x9e3779b97f4a7c15u;
  for (const uint64_t word : words) {
    hash = (hash ^ word) * 0xbf58476d1ce4e5b9u;
    hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
    hash ^= hash >> 31;
  }
  return hash;
}

// Box and Muller, from the two halves of one hash.
float Gaussian(uint64_t hash) {
  constexpr double kTau = 6.283185307179586;
  const double radius = (static_cast<double>(hash >> 32) + 1.0) * 0x1p-32;
  const double angle = static_cast<double>(hash & 0xffffffffu) * 0x1p-32 * kTau;
  return static_cast<float>(std::sqrt(-2.0 * std::log(radius)) * std::cos(angle));
}

struct Place {
  uint64_t seed;
  uint64_t layer;
  uint64_t head;
};

void FillGaussian(const Place& at, uint64_t stream, uint64_t row, float scale, int head_dim,
                  float* out) {
  for (int d = 0; d < head_dim; ++d) {
    const uint64_t hash = Hash({at.seed, stream, at.layer, row, at.head, static_cast<uint64_t>(d)});
    out[d] += scale * Gaussian(hash);
  }
}

// A random direction, of length sqrt(head_dim).
void FillCentre(const Place& at, uint64_t cluster, int head_dim, float* out) {
  FillGaussian(at, kCentre, cluster, 1.0f, head_dim, out);
  double norm2 = 0.0;
  for (int d = 0; d < head_dim; ++d) norm2 += static_cast<double>(out[d]) * out[d];
  const auto scale = static_cast<float>(std::sqrt(head_dim / norm2));
  for (int d = 0; d < head_dim; ++d) out[d] *= scale;
}

}  // namespace

std::vector<float> TensorRows(const v1::TensorSource& source, int layer, int64_t first_row,
                              int64_t num_rows, int num_heads, int head_dim) {
  std::vector<float> rows(num_rows * num_heads * head_dim, 0.0f);
  float* out = rows.data();
  for (int64_t row = first_row; row < first_row + num_rows; ++row) {
    for (int head = 0; head < num_heads; ++head, out += head_dim) {
      Place at{0, static_cast<uint64_t>(layer), static_cast<uint64_t>(head)};
      switch (source.kind_case()) {
        case v1::TensorSource::kGaussian: {
          const auto& gaussian = source.gaussian();
          at.seed = gaussian.seed();
          FillGaussian(at, kRow, row, gaussian.has_scale() ? gaussian.scale() : 1.0f, head_dim,
                       out);
          break;
        }
        case v1::TensorSource::kClustered: {
          const auto& clustered = source.clustered();
          at.seed = clustered.seed();
          const uint64_t choice =
              Hash({at.seed, kChoice, static_cast<uint64_t>(row)}) % clustered.clusters();
          FillCentre(at, choice, head_dim, out);
          FillGaussian(at, kRow, row, clustered.spread(), head_dim, out);
          break;
        }
        default:
          for (int d = 0; d < head_dim; ++d) out[d] = source.constant().value();
      }
    }
  }
  return rows;
}

}  // namespace wavekv::testing
