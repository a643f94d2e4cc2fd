// A kv head with its stream of tokens and calibrated decode queries: how attention of trained
// models spreads over a long context, without a model.
//
// The targets are published statistics (RetrievalAttention, MagicPIG, MInference, RetroInfer):
// top 1 % of the tokens hold .97, .85 or .50 of the mass that sinks leave; sinks hold half; keys
// lie in a narrow cone opposed to the sinks', queries near the sinks.
#ifndef WAVEKV_TOOLS_SYNTHETIC_SYNTHETIC_HEAD_H_
#define WAVEKV_TOOLS_SYNTHETIC_SYNTHETIC_HEAD_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tools/synthetic/token_stream.h"

namespace wavekv::synthetic {

enum class Sharpness : uint8_t { kSharp, kMid, kFlat };

// "sharp", "mid" or "flat".
const char* SharpnessName(Sharpness sharpness);
absl::StatusOr<Sharpness> ParseSharpness(absl::string_view name);

// Share of the mass of all but the sinks that the heaviest 1 % of these tokens hold.
double TopMassTarget(Sharpness sharpness);

struct SyntheticHeadSpec {
  int64_t num_tokens = 131072;
  int head_dim = 128;        // even, 32 to 256
  int gqa_group_size = 4;    // query heads of the kv head
  int64_t num_queries = 32;  // of the last positions, one each
  Sharpness sharpness = Sharpness::kMid;
  double spectrum_exponent = 0.5;
  double sink_mass = 0.5;   // share of the mass on the first 4 tokens, mean over the queries
  double local_mass = 0.1;  // share of the rest on the last 64 tokens, mean over the queries
  // Single tokens that every fourth query asks for, one after the other; such a query gives its
  // needle half of its mass.
  int64_t num_needles = 0;
  double drift = 0.1;  // radians that the keys' common part turns in 1024 of the queries' positions
  uint64_t seed = 1;
};

// Immutable, so thread-safe.
class SyntheticHead {
 public:
  // Calibrates the queries on a sample of the tokens. INVALID_ARGUMENT naming the field. Needs at
  // least 1024 tokens before the first query.
  static absl::StatusOr<SyntheticHead> Create(const SyntheticHeadSpec& spec);

  const SyntheticHeadSpec& spec() const { return spec_; }
  const TokenStream& tokens() const { return tokens_; }

  // [num_queries, gqa_group_size, head_dim], after RoPE, for a softmax scale of 1/sqrt(head_dim).
  const std::vector<float>& queries() const { return queries_; }
  // Query i stands at this position, and sees it.
  int64_t position(int64_t query) const { return spec_.num_tokens - spec_.num_queries + query; }
  // The needle that a query asks for, or -1.
  int64_t needle_of(int64_t query) const;
  const std::vector<int64_t>& needles() const { return tokens_.spec().needles; }

 private:
  SyntheticHead(const SyntheticHeadSpec& spec, const TokenStreamSpec& stream)
      : spec_(spec), tokens_(stream) {}

  SyntheticHeadSpec spec_;
  TokenStream tokens_;
  std::vector<float> queries_;
};

}  // namespace wavekv::synthetic

#endif  // WAVEKV_TOOLS_SYNTHETIC_SYNTHETIC_HEAD_H_
