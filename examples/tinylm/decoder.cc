#include "examples/tinylm/decoder.h"

#include <algorithm>

#include "examples/tinylm/status_macros.h"

namespace tinylm {
namespace {

// Tokens read at once: keys and values that are fetched serve this many queries.
constexpr size_t kChunkTokens = 512;

}  // namespace

absl::Status Decoder::Read(absl::Span<const int32_t> tokens,
                           absl::FunctionRef<void(int64_t num_tokens)> progress) {
  for (size_t begin = 0; begin < tokens.size(); begin += kChunkTokens) {
    const auto chunk = tokens.subspan(begin, kChunkTokens);
    const size_t end = begin + chunk.size();
    TINYLM_RETURN_IF_ERROR(Forward(chunk, /*predict=*/end == tokens.size()));
    progress(static_cast<int64_t>(end));
  }
  return absl::OkStatus();
}

absl::Status Decoder::Step(int32_t token) { return Forward({token}, /*predict=*/true); }

absl::Status Decoder::Forward(absl::Span<const int32_t> tokens, bool predict) {
  TINYLM_RETURN_IF_ERROR(model_->Forward(tokens, predict ? 1 : 0, &history_, attention_, &logits_));
  if (predict) {
    const auto best = std::max_element(logits_.begin(), logits_.end());
    next_token_ = static_cast<int32_t>(best - logits_.begin());
  }
  return absl::OkStatus();
}

}  // namespace tinylm
