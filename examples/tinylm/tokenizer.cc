#include "examples/tinylm/tokenizer.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "examples/tinylm/status_macros.h"

namespace tinylm {
namespace {

constexpr char kLineBreakPiece[] = "<nl>";
constexpr char kReplacementCharacter[] = "\xef\xbf\xbd";

}  // namespace

absl::StatusOr<Tokenizer> Tokenizer::Load(const std::string& path, int vocab_size) {
  auto model = std::make_unique<SentencePieceModel>();
  if (const std::string error = model->Load(path); !error.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot load the tokenizer: ", error));
  }
  if (model->num_pieces() != vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected the model's ", vocab_size,
                                                   " pieces, got ", model->num_pieces()));
  }
  if (model->bos_id() < 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": no piece marks the beginning"));
  }
  return Tokenizer(std::move(model));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view text) const {
  std::vector<int> ids;
  const std::string error =
      model_->Encode(absl::StrReplaceAll(text, {{"\n", kLineBreakPiece}}), &ids);
  if (!error.empty()) return absl::InternalError(absl::StrCat("cannot encode: ", error));
  return std::vector<int32_t>(ids.begin(), ids.end());
}

absl::StatusOr<std::string> Tokenizer::Decode(absl::Span<const int32_t> tokens) const {
  for (const int32_t token : tokens) {
    if (token < 0 || token >= model_->num_pieces()) {
      return absl::InvalidArgumentError(absl::StrCat("tokens: expected ids from 0 to ",
                                                     model_->num_pieces() - 1, ", got ", token));
    }
  }
  std::string text;
  const std::string error = model_->Decode(std::vector<int>(tokens.begin(), tokens.end()), &text);
  if (!error.empty()) return absl::InternalError(absl::StrCat("cannot decode: ", error));
  return absl::StrReplaceAll(text, {{kLineBreakPiece, "\n"}});
}

absl::StatusOr<std::string> TokenStream::Next(int32_t token) {
  tokens_.push_back(token);
  TINYLM_ASSIGN_OR_RETURN(const std::string text, tokenizer_->Decode(tokens_));
  // The last character may have more bytes to come.
  if (absl::EndsWith(text, kReplacementCharacter) || text.size() < num_chars_told_) {
    return std::string();
  }
  std::string next = text.substr(num_chars_told_);
  num_chars_told_ = text.size();
  return next;
}

}  // namespace tinylm
