#include "tools/synthetic/synthetic_head.h"

#include <cmath>
#include <random>
#include <utility>

#include "absl/status/status.h"
#include "fmt/format.h"
#include "tools/synthetic/query_calibration.h"

namespace wavekv::synthetic {
namespace {

constexpr int64_t kTokensMin = 1024;  // before the first query
constexpr int kTargets = 64;
constexpr double kInterestSpread = 2.5;   // of log weights: a few targets matter at a time
constexpr double kQueryMemory = 0.98;     // of a query's interests from one step to the next
constexpr double kPrivateInterest = 0.2;  // of a query head, beside its group's
constexpr double kQueryVariation = 0.4;   // of the odds of a query's top mass, log-normal
constexpr double kNeedleMass = 0.5;

absl::Status Check(const SyntheticHeadSpec& spec) {
  const auto check = [](const char* field, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return absl::OkStatus();
    return absl::InvalidArgumentError(
        fmt::format("{} must be in [{}, {}], got {}", field, low, high, value));
  };
  const auto check_number = [](const char* field, double value, double high) {
    if (value >= 0.0 && value <= high) return absl::OkStatus();
    return absl::InvalidArgumentError(
        fmt::format("{} must be in [0, {}], got {}", field, high, value));
  };
  for (const absl::Status& status :
       {check("head_dim", spec.head_dim, 32, 256),
        check("gqa_group_size", spec.gqa_group_size, 1, 64),
        check("num_queries", spec.num_queries, 1, 1 << 20),
        check("num_tokens", spec.num_tokens, spec.num_queries + kTokensMin, int64_t{1} << 32),
        check("num_needles", spec.num_needles, 0, spec.num_tokens / 64),
        check_number("sink_mass", spec.sink_mass, 0.99),
        check_number("local_mass", spec.local_mass, 0.9),
        check_number("spectrum_exponent", spec.spectrum_exponent, 4.0),
        check_number("drift", spec.drift, 1e3)}) {
    if (!status.ok()) return status;
  }
  if (spec.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(fmt::format("head_dim must be even, got {}", spec.head_dim));
  }
  return absl::OkStatus();
}

TokenStreamSpec StreamOf(const SyntheticHeadSpec& spec) {
  TokenStreamSpec stream;
  stream.num_tokens = spec.num_tokens;
  stream.head_dim = spec.head_dim;
  stream.spectrum_exponent = spec.spectrum_exponent;
  stream.sink_tokens = kSinkTokens;
  stream.drift = spec.drift;
  stream.decode_begin = spec.num_tokens - spec.num_queries;
  stream.seed = spec.seed;
  // Evenly spread, so that a needle's depth is no matter of luck.
  const int64_t span = stream.decode_begin - kLocalTokens - kSinkTokens;
  for (int64_t i = 0; i < spec.num_needles; ++i) {
    stream.needles.push_back(kSinkTokens + (2 * i + 1) * span / (2 * spec.num_needles));
  }
  return stream;
}

// What the query heads of a group look for, step by step: weights of the targets that walk slowly
// and keep together within the group.
class Interests {
 public:
  Interests(int group, std::mt19937_64& generator)
      : generator_(generator), shared_(kTargets), own_(static_cast<size_t>(group) * kTargets) {
    for (double& x : shared_) x = gaussian_(generator_);
    for (double& x : own_) x = gaussian_(generator_);
  }

  void Step() {
    const double news = std::sqrt(1.0 - kQueryMemory * kQueryMemory);
    for (double& x : shared_) x = kQueryMemory * x + news * gaussian_(generator_);
    for (double& x : own_) x = kQueryMemory * x + news * gaussian_(generator_);
  }

  double Weight(int head, int target) const {
    return std::exp(kInterestSpread *
                    (shared_[target] + kPrivateInterest * own_[head * kTargets + target]));
  }

 private:
  std::mt19937_64& generator_;
  std::normal_distribution<double> gaussian_;
  std::vector<double> shared_;
  std::vector<double> own_;
};

// The sum of weighted rows, brought to length 1.
std::vector<float> Mixture(const std::vector<std::vector<float>>& rows,
                           const std::vector<double>& weights) {
  std::vector<double> sum(rows[0].size());
  for (size_t r = 0; r < rows.size(); ++r) {
    for (size_t d = 0; d < sum.size(); ++d) sum[d] += weights[r] * rows[r][d];
  }
  double squares = 0.0;
  for (const double x : sum) squares += x * x;
  std::vector<float> mixture;
  for (const double x : sum) mixture.push_back(static_cast<float>(x / std::sqrt(squares)));
  return mixture;
}

void AddScaled(std::vector<float>& sum, double factor, const std::vector<float>& row) {
  for (size_t d = 0; d < sum.size(); ++d) sum[d] += static_cast<float>(factor * row[d]);
}

}  // namespace

const char* SharpnessName(Sharpness sharpness) {
  switch (sharpness) {
    case Sharpness::kSharp:
      return "sharp";
    case Sharpness::kMid:
      return "mid";
    case Sharpness::kFlat:
      return "flat";
  }
  return "";
}

absl::StatusOr<Sharpness> ParseSharpness(absl::string_view name) {
  for (const Sharpness s : {Sharpness::kSharp, Sharpness::kMid, Sharpness::kFlat}) {
    if (name == SharpnessName(s)) return s;
  }
  return absl::InvalidArgumentError(
      fmt::format("a head must be sharp, mid or flat, got \"{}\"", std::string(name)));
}

double TopMassTarget(Sharpness sharpness) {
  switch (sharpness) {
    case Sharpness::kSharp:
      return 0.97;
    case Sharpness::kMid:
      return 0.85;
    case Sharpness::kFlat:
      return 0.50;
  }
  return 0.0;
}

int64_t SyntheticHead::needle_of(int64_t query) const {
  if (needles().empty() || query % 4 != 3) return -1;
  return needles()[(query / 4) % static_cast<int64_t>(needles().size())];
}

absl::StatusOr<SyntheticHead> SyntheticHead::Create(const SyntheticHeadSpec& spec) {
  if (absl::Status status = Check(spec); !status.ok()) return status;
  SyntheticHead head(spec, StreamOf(spec));
  const int64_t far_end = spec.num_tokens - spec.num_queries - kLocalTokens;

  std::mt19937_64 generator(~spec.seed);
  std::uniform_int_distribution<int64_t> far_token(kSinkTokens, far_end - 1);
  std::vector<int64_t> alone;
  std::vector<std::vector<float>> targets;
  for (int i = 0; i < kTargets; ++i) {
    alone.push_back(far_token(generator));
    targets.push_back(head.tokens_.ContentDirection(alone.back(), 0.0));
  }
  alone.insert(alone.end(), head.needles().begin(), head.needles().end());
  const TokenSample sample = DrawSample(head.tokens_, far_end, std::move(alone));

  const std::vector<float> sink = head.tokens_.SinkDirection();
  const double target_odds = LogOdds(TopMassTarget(spec.sharpness));
  std::normal_distribution<double> gaussian;
  Interests interests(spec.gqa_group_size, generator);
  for (int64_t query = 0; query < spec.num_queries; ++query, interests.Step()) {
    const int64_t visible = sample.visible(head.position(query));
    const std::vector<float> local = head.tokens_.LocalDirection(head.position(query));
    QueryProjection projection;
    projection.local = sample.Logits(local, visible);
    projection.sink = sample.Logits(sink, visible);
    const int64_t needle = head.needle_of(query);
    for (int h = 0; h < spec.gqa_group_size; ++h) {
      std::vector<double> weights;
      for (int t = 0; t < kTargets; ++t) weights.push_back(interests.Weight(h, t));
      const std::vector<float> content = Mixture(targets, weights);
      projection.content = sample.Logits(content, visible);
      const double odds = target_odds + kQueryVariation * gaussian(generator);
      const QueryCoefficients c = CalibrateMasses(
          sample, projection, {spec.sink_mass, spec.local_mass, 1.0 / (1.0 + std::exp(-odds))});

      std::vector<float> q(spec.head_dim);
      AddScaled(q, c.local, local);
      AddScaled(q, c.sink, sink);
      if (needle < 0) {
        AddScaled(q, c.content, content);
      } else {
        const std::vector<float> direction = head.tokens_.ContentDirection(needle, 1.0);
        AddScaled(
            q,
            CalibrateNeedle(sample, sample.Logits(q, visible), sample.Logits(direction, visible),
                            sample.visible(needle) - 1, kNeedleMass),
            direction);
      }
      head.queries_.insert(head.queries_.end(), q.begin(), q.end());
    }
  }
  return head;
}

}  // namespace wavekv::synthetic
