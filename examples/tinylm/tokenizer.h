// Text to token ids and back.
#ifndef WAVEKV_EXAMPLES_TINYLM_TOKENIZER_H_
#define WAVEKV_EXAMPLES_TINYLM_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "examples/tinylm/sentencepiece_model.h"

namespace tinylm {

// The model's vocabulary writes a line break as the piece "<nl>", and its texts begin with a piece
// that marks the beginning. Thread-safe.
class Tokenizer {
 public:
  // INVALID_ARGUMENT for a file that is no SentencePiece model or has another number of pieces
  // than vocab_size.
  static absl::StatusOr<Tokenizer> Load(const std::string& path, int vocab_size);

  // Without the piece that marks the beginning. Any bytes are accepted.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text) const;
  // Marks of beginning and end become nothing; bytes that are not UTF-8 become U+FFFD.
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> tokens) const;

  int32_t bos() const { return model_->bos_id(); }
  int32_t eos() const { return model_->eos_id(); }

 private:
  explicit Tokenizer(std::unique_ptr<SentencePieceModel> model) : model_(std::move(model)) {}

  std::unique_ptr<SentencePieceModel> model_;
};

// Turns generated tokens into text as they come.
class TokenStream {
 public:
  explicit TokenStream(const Tokenizer* tokenizer) : tokenizer_(tokenizer) {}

  // The text that `token` completes; empty while a character is incomplete.
  absl::StatusOr<std::string> Next(int32_t token);

 private:
  const Tokenizer* tokenizer_;
  std::vector<int32_t> tokens_;
  size_t num_chars_told_ = 0;
};

}  // namespace tinylm

#endif  // WAVEKV_EXAMPLES_TINYLM_TOKENIZER_H_
