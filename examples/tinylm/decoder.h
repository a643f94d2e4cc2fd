// Reads a text and continues it greedily.
#ifndef WAVEKV_EXAMPLES_TINYLM_DECODER_H_
#define WAVEKV_EXAMPLES_TINYLM_DECODER_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "examples/tinylm/attention.h"
#include "examples/tinylm/model.h"

namespace tinylm {

class Decoder {
 public:
  // `history` is that of the tokens which `attention` already holds.
  Decoder(Model* model, Attention* attention, const TokenHistory& history = {})
      : model_(model), attention_(attention), history_(history) {}

  // Reads many tokens, a chunk at a time. `progress` is called with the number read so far.
  absl::Status Read(absl::Span<const int32_t> tokens,
                    absl::FunctionRef<void(int64_t num_tokens)> progress);

  // Reads one token: a decode step.
  absl::Status Step(int32_t token);

  // The likeliest next token; call after Read or Step.
  int32_t next_token() const { return next_token_; }
  const TokenHistory& history() const { return history_; }

 private:
  absl::Status Forward(absl::Span<const int32_t> tokens, bool predict);

  Model* model_;
  Attention* attention_;
  TokenHistory history_;
  std::vector<float> logits_;
  int32_t next_token_ = 0;
};

}  // namespace tinylm

#endif  // WAVEKV_EXAMPLES_TINYLM_DECODER_H_
