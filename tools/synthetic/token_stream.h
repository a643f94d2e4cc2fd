// Keys and values of one kv head, drawn so that they resemble those of a trained transformer.
#ifndef WAVEKV_TOOLS_SYNTHETIC_TOKEN_STREAM_H_
#define WAVEKV_TOOLS_SYNTHETIC_TOKEN_STREAM_H_

#include <cstdint>
#include <random>
#include <vector>

#include "absl/types/span.h"

namespace wavekv::synthetic {

// Lengths are relative to what a key means, its random part.
struct TokenStreamSpec {
  int64_t num_tokens = 131072;
  int head_dim = 128;              // even, at least 32
  double spectrum_exponent = 0.5;  // principal direction i has standard deviation ~ i^-exponent
  double topic_tokens = 200;       // mean length of a topic, geometric
  double topic_share = 0.36;       // of a token's variance that it has in common with its topic
  double common_length = 1.0;      // of what all keys share; survives RoPE
  double local_length = 0.6;       // of what ties a key to its neighbours by RoPE alone
  int64_t sink_tokens = 4;         // keys opposed to the mean, values near zero
  double drift = 0.0;              // radians that the common part turns in 1024 decoded tokens
  int64_t decode_begin = 0;        // first decoded token
  std::vector<int64_t> needles;    // tokens of unusual meaning, ascending
  uint64_t seed = 1;
};

// Token t is a function of the spec alone, so a stream of any length costs no memory and is read in
// any order; in blocks it is fastest.
//
// A key before RoPE consists, by rotary pairs from fast to slow, of
//   - a constant that ties it to its neighbours (pairs that turn by more than 1/256 radian a
//   token),
//     and a little noise;
//   - what it means, U (topic + word), U orthogonal after the spectrum, each pair scaled by a
//     log-normal factor;
//   - in few slow pairs what all keys of the head share: large and nearly constant channels, as
//     trained models have them;
//   - the last pair, which belongs to the sinks.
// Its length varies by 8 %. RoPE: halves rotated against each other, position = token, base 5e5 or,
// for streams above 128K tokens, as much more as keeps a sixteenth of the pairs slow. A value is
// the head's mean + a Gaussian of log-normal length that knows nothing of the key.
//
// Threads: const, so thread-safe.
class TokenStream {
 public:
  static constexpr int64_t kBlockTokens = 1024;
  // Mean length of a key; trained heads have 10 to 100, and queries are scaled to fit.
  static constexpr double kKeyLength = 20.0;

  explicit TokenStream(const TokenStreamSpec& spec);

  const TokenStreamSpec& spec() const { return spec_; }

  // Keys after RoPE and values of tokens [begin, begin + num_tokens): [num_tokens, head_dim] each.
  void Keys(int64_t begin, int64_t num_tokens, float* keys) const;
  void Values(int64_t begin, int64_t num_tokens, float* values) const;

  // Directions of length 1 that queries are made of. What a query adds to find what `token` means;
  // with spectrum_power 1 along the key itself, with 0 as if all principal directions were equally
  // strong, which other keys' strong directions drown sooner:
  std::vector<float> ContentDirection(int64_t token, double spectrum_power) const;
  // to find the tokens before its own position:
  std::vector<float> LocalDirection(int64_t position) const;
  // and to rest on the sinks: towards their pair, and away from what other keys share.
  std::vector<float> SinkDirection() const;

 private:
  using Generator = std::mt19937_64;
  using Gaussian = std::normal_distribution<float>;

  Generator GeneratorOf(uint64_t purpose, int64_t index) const;
  int64_t TopicOf(int64_t token) const;

  // Rows of the tokens [block * kBlockTokens, end), which lie in one block.
  using Draw = std::vector<float> (TokenStream::*)(int64_t block, int64_t end) const;
  std::vector<float> DrawMeanings(int64_t block, int64_t end) const;
  std::vector<float> DrawKeys(int64_t block, int64_t end) const;
  std::vector<float> DrawValues(int64_t block, int64_t end) const;
  void Read(Draw draw, int64_t begin, int64_t num_tokens, float* rows) const;

  int ContentDim() const { return 2 * (content_end_pair_ - first_content_pair_); }
  void MixDirections(absl::Span<float> row) const;
  void PlaceContent(absl::Span<const float> content, float exponent, float* row) const;
  void DrawSink(absl::Span<float> key) const;
  void Rotate(int64_t first_position, absl::Span<float> rows) const;

  TokenStreamSpec spec_;
  std::vector<double> frequency_;     // radians a token, [head_dim / 2]
  std::vector<float> pair_scale_;     // [head_dim / 2]
  int first_content_pair_ = 0;        // the pairs before are fast
  int content_end_pair_ = 0;          // the pairs from here on are slow
  std::vector<float> spectrum_;       // [ContentDim()], mean square 1
  std::vector<float> signs_[2];       // of the random rotation
  std::vector<float> common_;         // [head_dim], scaled
  std::vector<float> common_turned_;  // where drift turns it to
  std::vector<float> local_;          // [head_dim], scaled
  std::vector<float> value_mean_;     // [head_dim]
  std::vector<int64_t> topic_begin_;  // first token of each topic
};

}  // namespace wavekv::synthetic

#endif  // WAVEKV_TOOLS_SYNTHETIC_TOKEN_STREAM_H_
