#include "tools/synthetic/token_stream.h"

#include <algorithm>
#include <cmath>

namespace wavekv::synthetic {
namespace {

// What a generator is for; part of its seed.
enum Purpose : uint64_t { kHead = 1, kTopics, kTopic, kMeanings, kLengths, kValues };

// Mixes the bits of a seed (the finaliser of SplitMix64).
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

double Length(absl::Span<const float> row) {
  double squares = 0.0;
  for (const float x : row) squares += static_cast<double>(x) * x;
  return std::sqrt(squares);
}

void Scale(absl::Span<float> row, double factor) {
  for (float& x : row) x = static_cast<float>(x * factor);
}

// Walsh-Hadamard of a power of two, orthonormal.
void Hadamard(float* row, int n) {
  for (int half = 1; half < n; half *= 2) {
    for (int i = 0; i < n; i += 2 * half) {
      for (int j = i; j < i + half; ++j) {
        const float a = row[j];
        const float b = row[j + half];
        row[j] = a + b;
        row[j + half] = a - b;
      }
    }
  }
  const float factor = 1.0f / std::sqrt(static_cast<float>(n));
  for (int i = 0; i < n; ++i) row[i] *= factor;
}

constexpr double kLengthVariation = 0.08;
constexpr double kPairScaleDeviation = 0.3;
constexpr double kFastRadians = 1.0 / 256;  // a token, at least
constexpr float kFastScale = 0.1f;
constexpr double kSlowRadians = 0.6;  // that a slow pair turns in a stream at most
constexpr double kSinkCosine = -0.85;
constexpr double kSinkLength = 0.37;
constexpr double kAwayFromCommon = 0.8;  // share of a query's sink direction opposed to other keys
constexpr float kSinkValueScale = 0.05f;
constexpr float kNeedleEmphasis = 3.0f;
constexpr float kValueMean = 0.5f;
constexpr float kValueLengthDeviation = 0.3f;

}  // namespace

TokenStream::TokenStream(const TokenStreamSpec& spec) : spec_(spec) {
  const int dim = spec_.head_dim;
  const int pairs = dim / 2;
  Generator generator = GeneratorOf(kHead, 0);
  Gaussian gaussian;

  const double rope_base =
      std::max(5e5, std::pow(static_cast<double>(spec_.num_tokens) / kSlowRadians, 16.0 / 15.0));
  for (int i = 0; i < pairs; ++i) {
    frequency_.push_back(std::pow(rope_base, -static_cast<double>(i) / pairs));
    pair_scale_.push_back(std::exp(static_cast<float>(kPairScaleDeviation) * gaussian(generator)));
  }
  content_end_pair_ = pairs - 1 - std::max(1, pairs / 16 - 1);
  while (first_content_pair_ < content_end_pair_ - 1 &&
         frequency_[first_content_pair_] > kFastRadians) {
    ++first_content_pair_;
  }
  const int content_dim = ContentDim();
  double squares = 0.0;
  for (int i = 0; i < content_dim; ++i) {
    spectrum_.push_back(static_cast<float>(std::pow(i + 1.0, -spec_.spectrum_exponent)));
    squares += static_cast<double>(spectrum_[i]) * spectrum_[i];
  }
  Scale(absl::MakeSpan(spectrum_), std::sqrt(content_dim / squares));
  for (std::vector<float>& signs : signs_) {
    for (int i = 0; i < content_dim; ++i) signs.push_back(generator() % 2 == 0 ? 1.0f : -1.0f);
  }
  common_.assign(dim, 0.0f);
  common_turned_.assign(dim, 0.0f);
  local_.assign(dim, 0.0f);
  for (int i = 0; i < pairs; ++i) {
    const bool slow = i >= content_end_pair_;
    const bool fast = i < first_content_pair_;
    // Of equal length in each pair: their cosines then cancel best away from the query.
    const float phase = gaussian(generator) * 3.0f;
    if (fast) local_[i] = std::cos(phase);
    if (fast) local_[i + pairs] = std::sin(phase);
    for (const int channel : {i, i + pairs}) {
      if (slow) common_[channel] = gaussian(generator);
      if (slow) common_turned_[channel] = gaussian(generator);
    }
  }
  for (const int channel : {pairs - 1, dim - 1}) {
    common_[channel] = common_turned_[channel] = local_[channel] = 0.0f;
  }
  const double random_length = std::sqrt(static_cast<double>(content_dim));
  // The turned direction is orthogonal to the common one.
  double along = 0.0;
  for (int i = 0; i < dim; ++i) along += static_cast<double>(common_[i]) * common_turned_[i];
  along /= std::pow(Length(common_), 2);
  for (int i = 0; i < dim; ++i) common_turned_[i] -= static_cast<float>(along * common_[i]);
  Scale(absl::MakeSpan(common_), spec_.common_length * random_length / Length(common_));
  Scale(absl::MakeSpan(common_turned_),
        spec_.common_length * random_length / Length(common_turned_));
  Scale(absl::MakeSpan(local_), spec_.local_length * random_length / Length(local_));

  for (int i = 0; i < dim; ++i) value_mean_.push_back(kValueMean * gaussian(generator));

  Generator topics = GeneratorOf(kTopics, 0);
  std::geometric_distribution<int64_t> more(1.0 / spec_.topic_tokens);
  for (int64_t begin = 0; begin < spec_.num_tokens; begin += 1 + more(topics)) {
    topic_begin_.push_back(begin);
  }
}

TokenStream::Generator TokenStream::GeneratorOf(uint64_t purpose, int64_t index) const {
  return Generator(Mix(Mix(spec_.seed) ^ Mix(purpose << 56 ^ static_cast<uint64_t>(index))));
}

int64_t TokenStream::TopicOf(int64_t token) const {
  return std::upper_bound(topic_begin_.begin(), topic_begin_.end(), token) - topic_begin_.begin() -
         1;
}

// An orthogonal map that spreads every direction over all of `row`. Two overlapping Hadamard
// transforms cover a size that is no power of two.
void TokenStream::MixDirections(absl::Span<float> row) const {
  const int dim = static_cast<int>(row.size());
  int n = 1;
  while (2 * n <= dim) n *= 2;
  for (int i = 0; i < dim; ++i) row[i] *= signs_[0][i];
  Hadamard(row.data(), n);
  if (n == dim) return;
  for (int i = 0; i < dim; ++i) row[i] *= signs_[1][i];
  Hadamard(row.data() + dim - n, n);
}

// `content` [ContentDim()] goes to the two halves of the content pairs, times scale^exponent.
void TokenStream::PlaceContent(absl::Span<const float> content, float exponent, float* row) const {
  const int pairs = spec_.head_dim / 2;
  const int num_content_pairs = ContentDim() / 2;
  for (int i = 0; i < num_content_pairs; ++i) {
    const int pair = first_content_pair_ + i;
    const float scale = std::pow(pair_scale_[pair], exponent);
    row[pair] = scale * content[i];
    row[pair + pairs] = scale * content[num_content_pairs + i];
  }
}

// Rows at consecutive positions. The angle goes on by complex multiplication: a cosine for each
// token and pair would be most of a key's cost.
void TokenStream::Rotate(int64_t first_position, absl::Span<float> rows) const {
  const int dim = spec_.head_dim;
  const int pairs = dim / 2;
  std::vector<double> cosine(pairs), sine(pairs), step_cosine(pairs), step_sine(pairs);
  for (int i = 0; i < pairs; ++i) {
    cosine[i] = std::cos(static_cast<double>(first_position) * frequency_[i]);
    sine[i] = std::sin(static_cast<double>(first_position) * frequency_[i]);
    step_cosine[i] = std::cos(frequency_[i]);
    step_sine[i] = std::sin(frequency_[i]);
  }
  for (size_t begin = 0; begin < rows.size(); begin += dim) {
    float* const row = rows.data() + begin;
    for (int i = 0; i < pairs; ++i) {
      const auto c = static_cast<float>(cosine[i]);
      const auto s = static_cast<float>(sine[i]);
      const float a = row[i];
      const float b = row[i + pairs];
      row[i] = a * c - b * s;
      row[i + pairs] = b * c + a * s;
      const double next = cosine[i] * step_cosine[i] - sine[i] * step_sine[i];
      sine[i] = sine[i] * step_cosine[i] + cosine[i] * step_sine[i];
      cosine[i] = next;
    }
  }
}

// What the tokens [block * kBlockTokens, end) mean: [tokens, ContentDim()] of variance 1.
std::vector<float> TokenStream::DrawMeanings(int64_t block, int64_t end) const {
  const int dim = ContentDim();
  const int64_t first = block * kBlockTokens;
  Generator generator = GeneratorOf(kMeanings, block);
  Gaussian gaussian;
  const auto topic_weight = static_cast<float>(std::sqrt(spec_.topic_share));
  const auto word_weight = static_cast<float>(std::sqrt(1.0 - spec_.topic_share));
  int64_t topic = -1;
  std::vector<float> topic_row(dim);
  std::vector<float> meanings((end - first) * dim);
  for (int64_t token = first; token < end; ++token) {
    if (const int64_t now = TopicOf(token); now != topic) {
      topic = now;
      Generator of_topic = GeneratorOf(kTopic, topic);
      Gaussian topic_gaussian;
      for (float& x : topic_row) x = topic_gaussian(of_topic);
    }
    float* const meaning = meanings.data() + (token - first) * dim;
    for (int i = 0; i < dim; ++i) {
      meaning[i] = topic_weight * topic_row[i] + word_weight * gaussian(generator);
    }
  }
  return meanings;
}

std::vector<float> TokenStream::DrawKeys(int64_t block, int64_t end) const {
  const int dim = spec_.head_dim;
  const int pairs = dim / 2;
  const int content_dim = ContentDim();
  const int64_t first = block * kBlockTokens;
  Generator generator = GeneratorOf(kLengths, block);
  Gaussian gaussian;
  std::vector<float> meanings = DrawMeanings(block, end);
  std::vector<float> keys((end - first) * dim);
  for (int64_t token = first; token < end; ++token) {
    const absl::Span<float> content(meanings.data() + (token - first) * content_dim, content_dim);
    const bool needle = std::binary_search(spec_.needles.begin(), spec_.needles.end(), token);
    for (int i = 0; i < content_dim; ++i) {
      content[i] *= spectrum_[i] * (needle ? kNeedleEmphasis : 1.0f);
    }
    MixDirections(content);
    const absl::Span<float> key(keys.data() + (token - first) * dim, dim);
    PlaceContent(content, 1.0f, key.data());
    for (int i = 0; i < first_content_pair_; ++i) {
      key[i] = kFastScale * gaussian(generator);
      key[i + pairs] = kFastScale * gaussian(generator);
    }
    const double angle =
        spec_.drift * static_cast<double>(std::max<int64_t>(0, token - spec_.decode_begin)) / 1024;
    const auto straight = static_cast<float>(std::cos(angle));
    const auto turned = static_cast<float>(std::sin(angle));
    for (int i = 0; i < dim; ++i) {
      key[i] += straight * common_[i] + turned * common_turned_[i] + local_[i];
    }
    const double length = 1.0 + kLengthVariation * static_cast<double>(gaussian(generator));
    Scale(key, kKeyLength * std::max(0.5, length) / Length(key));
    if (token < spec_.sink_tokens) DrawSink(key);
  }
  Rotate(first, absl::MakeSpan(keys));
  return keys;
}

void TokenStream::DrawSink(absl::Span<float> key) const {
  const int dim = spec_.head_dim;
  const double common_length = Length(common_);
  for (int i = 0; i < dim; ++i) {
    key[i] =
        static_cast<float>(kSinkLength * kKeyLength * kSinkCosine / common_length * common_[i]);
  }
  key[dim - 1] =
      static_cast<float>(kSinkLength * kKeyLength * std::sqrt(1.0 - kSinkCosine * kSinkCosine));
}

std::vector<float> TokenStream::DrawValues(int64_t block, int64_t end) const {
  const int dim = spec_.head_dim;
  const int64_t first = block * kBlockTokens;
  Generator generator = GeneratorOf(kValues, block);
  Gaussian gaussian;
  std::vector<float> values((end - first) * dim);
  for (int64_t token = first; token < end; ++token) {
    const absl::Span<float> value(values.data() + (token - first) * dim, dim);
    const float length = std::exp(kValueLengthDeviation * gaussian(generator));
    for (int i = 0; i < dim; ++i) value[i] = value_mean_[i] + length * gaussian(generator);
    if (token < spec_.sink_tokens) Scale(value, kSinkValueScale);
  }
  return values;
}

void TokenStream::Read(Draw draw, int64_t begin, int64_t num_tokens, float* rows) const {
  for (int64_t token = begin; token < begin + num_tokens;) {
    const int64_t block = token / kBlockTokens;
    const int64_t end = std::min((block + 1) * kBlockTokens, begin + num_tokens);
    const std::vector<float> drawn = (this->*draw)(block, end);
    rows = std::copy(drawn.begin() + (token - block * kBlockTokens) * spec_.head_dim, drawn.end(),
                     rows);
    token = end;
  }
}

void TokenStream::Keys(int64_t begin, int64_t num_tokens, float* keys) const {
  Read(&TokenStream::DrawKeys, begin, num_tokens, keys);
}

void TokenStream::Values(int64_t begin, int64_t num_tokens, float* values) const {
  Read(&TokenStream::DrawValues, begin, num_tokens, values);
}

std::vector<float> TokenStream::ContentDirection(int64_t token, double spectrum_power) const {
  const int64_t block = token / kBlockTokens;
  std::vector<float> content = DrawMeanings(block, token + 1);
  content.erase(content.begin(), content.end() - ContentDim());
  for (int i = 0; i < ContentDim(); ++i) {
    content[i] *= static_cast<float>(std::pow(spectrum_[i], spectrum_power));
  }
  MixDirections(absl::MakeSpan(content));
  std::vector<float> direction(spec_.head_dim);
  PlaceContent(content, -1.0f, direction.data());
  Rotate(token, absl::MakeSpan(direction));
  Scale(absl::MakeSpan(direction), 1.0 / Length(direction));
  return direction;
}

std::vector<float> TokenStream::LocalDirection(int64_t position) const {
  std::vector<float> direction = local_;
  Rotate(position, absl::MakeSpan(direction));
  Scale(absl::MakeSpan(direction), 1.0 / Length(direction));
  return direction;
}

std::vector<float> TokenStream::SinkDirection() const {
  std::vector<float> direction = common_;
  Scale(absl::MakeSpan(direction), -kAwayFromCommon / Length(direction));
  direction.back() = static_cast<float>(std::sqrt(1.0 - kAwayFromCommon * kAwayFromCommon));
  return direction;
}

}  // namespace wavekv::synthetic
