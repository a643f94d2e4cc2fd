#include "tests/storage_cases/tensor_rows.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "tests/storage_cases/given_rows.h"

namespace wavekv::testing {
namespace {

// Which numbers of a source are drawn: those of rows, of centres, a row's choice of its centre, or
// those of a needle's direction.
enum Stream : uint64_t { kRow = 1, kCentre = 2, kChoice = 3, kNeedle = 4 };

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

// Random direction number `row` of the stream, of length sqrt(head_dim).
void FillDirection(const Place& at, uint64_t stream, uint64_t row, int head_dim, float* out) {
  FillGaussian(at, stream, row, 1.0f, head_dim, out);
  double norm2 = 0.0;
  for (int d = 0; d < head_dim; ++d) norm2 += static_cast<double>(out[d]) * out[d];
  const auto scale = static_cast<float>(std::sqrt(head_dim / norm2));
  for (int d = 0; d < head_dim; ++d) out[d] *= scale;
}

bool IsInNeedle(const v1::TensorSource::Haystack& haystack, uint64_t row) {
  const uint64_t length = haystack.has_needle_tokens() ? haystack.needle_tokens() : 1;
  return std::any_of(haystack.needles().begin(), haystack.needles().end(),
                     [&](uint64_t first) { return row >= first && row - first < length; });
}

// One row of one head; `out` is zero.
void FillRow(const v1::TensorSource& source, Place at, uint64_t row, const WantedRows& wanted,
             float* out) {
  const int head_dim = wanted.head_dim;
  switch (source.kind_case()) {
    case v1::TensorSource::kGaussian: {
      const auto& gaussian = source.gaussian();
      at.seed = gaussian.seed();
      FillGaussian(at, kRow, row, gaussian.has_scale() ? gaussian.scale() : 1.0f, head_dim, out);
      break;
    }
    case v1::TensorSource::kClustered: {
      const auto& clustered = source.clustered();
      at.seed = clustered.seed();
      const uint64_t choice = Hash({at.seed, kChoice, row}) % clustered.clusters();
      FillDirection(at, kCentre, choice, head_dim, out);
      FillGaussian(at, kRow, row, clustered.spread(), head_dim, out);
      break;
    }
    case v1::TensorSource::kHaystack: {
      at.seed = source.haystack().seed();
      if (IsInNeedle(source.haystack(), row)) {
        FillDirection(at, kNeedle, 0, head_dim, out);
      } else {
        FillGaussian(at, kRow, row, 1.0f, head_dim, out);
      }
      break;
    }
    case v1::TensorSource::kNeedle: {
      const auto& needle = source.needle();
      at.seed = needle.seed();
      at.head /= wanted.gqa_group_size;
      FillDirection(at, kNeedle, 0, head_dim, out);
      const float strength = needle.has_strength() ? needle.strength() : 3.0f;
      for (int d = 0; d < head_dim; ++d) out[d] *= strength;
      break;
    }
    default:
      for (int d = 0; d < head_dim; ++d) out[d] = source.constant().value();
  }
}

}  // namespace

absl::StatusOr<std::vector<float>> TensorRows(const v1::TensorSource& source,
                                              const WantedRows& wanted) {
  if (source.has_literal()) return LiteralRows(source.literal(), wanted);
  if (source.has_file()) return FileRows(source.file(), wanted);
  std::vector<float> rows(wanted.num_rows * wanted.num_heads * wanted.head_dim, 0.0f);
  float* out = rows.data();
  for (int64_t row = wanted.first_row; row < wanted.first_row + wanted.num_rows; ++row) {
    for (int head = 0; head < wanted.num_heads; ++head, out += wanted.head_dim) {
      const Place at{0, static_cast<uint64_t>(wanted.layer), static_cast<uint64_t>(head)};
      FillRow(source, at, static_cast<uint64_t>(row), wanted, out);
    }
  }
  return rows;
}

absl::Status CheckGivenRows(const v1::TensorSource& source, const WantedRows& wanted) {
  if (!source.has_literal() && !source.has_file()) return absl::OkStatus();
  return TensorRows(source, wanted).status();
}

}  // namespace wavekv::testing
