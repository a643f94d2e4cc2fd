// SentencePiece without its header: that declares absl::string_view itself, so no file can include
// both it and Abseil.
#ifndef WAVEKV_EXAMPLES_TINYLM_SENTENCEPIECE_MODEL_H_
#define WAVEKV_EXAMPLES_TINYLM_SENTENCEPIECE_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace tinylm {

// Immutable once loaded, so thread-safe. An empty string means success; anything else says what
// failed.
class SentencePieceModel {
 public:
  SentencePieceModel();
  ~SentencePieceModel();

  std::string Load(const std::string& path);

  int num_pieces() const;
  int bos_id() const;  // -1: none
  int eos_id() const;  // -1: none
  std::string Encode(const std::string& text, std::vector<int>* ids) const;
  std::string Decode(const std::vector<int>& ids, std::string* text) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tinylm

#endif  // WAVEKV_EXAMPLES_TINYLM_SENTENCEPIECE_MODEL_H_
