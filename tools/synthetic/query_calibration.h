// How far a query must go along its directions to spread its attention as it should.
#ifndef WAVEKV_TOOLS_SYNTHETIC_QUERY_CALIBRATION_H_
#define WAVEKV_TOOLS_SYNTHETIC_QUERY_CALIBRATION_H_

#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "tools/synthetic/token_stream.h"

namespace wavekv::synthetic {

inline constexpr int64_t kSinkTokens = 4;
inline constexpr int64_t kLocalTokens = 64;

inline double LogOdds(double share) { return std::log(share / (1.0 - share)); }

// Tokens that stand for all of a stream: the extraordinary ones for themselves, each of the others
// for `weight` tokens.
struct TokenSample {
  int head_dim = 0;
  std::vector<int64_t> tokens;  // ascending; the sinks and the last ones are all there
  std::vector<double> weights;
  double max_weight = 1.0;
  std::vector<float> keys;  // [tokens, head_dim]

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  // Number of sampled tokens that a query at `position` sees.
  int64_t visible(int64_t position) const;
  // Logits, at a softmax scale of 1/sqrt(head_dim), of the first num_tokens of the sample.
  std::vector<double> Logits(absl::Span<const float> query, int64_t num_tokens) const;
};

// alone: tokens that stand for themselves, besides sinks and the tokens from local_begin on.
TokenSample DrawSample(const TokenStream& stream, int64_t local_begin, std::vector<int64_t> alone);

// Logits of the visible tokens along the three directions of a query.
struct QueryProjection {
  std::vector<double> content;
  std::vector<double> local;
  std::vector<double> sink;
};

struct QueryCoefficients {
  double content = 0.0;
  double local = 0.0;
  double sink = 0.0;
};

struct MassTarget {
  double sinks = 0.0;  // of all
  double local = 0.0;  // of what the sinks leave, on the last 64 tokens
  double top = 0.0;    // of what the sinks leave, on its heaviest 1 %
};

// Coefficients that give the query its masses.
QueryCoefficients CalibrateMasses(const TokenSample& sample, const QueryProjection& projection,
                                  const MassTarget& target);

// How far to go along a direction with logits `along`, added to the logits `base`, for `token` (an
// index of the sample) to have that share of the mass.
double CalibrateNeedle(const TokenSample& sample, absl::Span<const double> base,
                       absl::Span<const double> along, int64_t token, double mass);

}  // namespace wavekv::synthetic

#endif  // WAVEKV_TOOLS_SYNTHETIC_QUERY_CALIBRATION_H_
