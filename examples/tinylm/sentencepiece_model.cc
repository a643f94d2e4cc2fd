#include "examples/tinylm/sentencepiece_model.h"

#include <sentencepiece_processor.h>

namespace tinylm {

struct SentencePieceModel::Impl {
  sentencepiece::SentencePieceProcessor processor;
};

namespace {

std::string Message(const sentencepiece::util::Status& status) {
  return status.ok() ? std::string() : status.ToString();
}

}  // namespace

SentencePieceModel::SentencePieceModel() : impl_(std::make_unique<Impl>()) {}
SentencePieceModel::~SentencePieceModel() = default;

std::string SentencePieceModel::Load(const std::string& path) {
  return Message(impl_->processor.Load(path));
}

int SentencePieceModel::num_pieces() const { return impl_->processor.GetPieceSize(); }
int SentencePieceModel::bos_id() const { return impl_->processor.bos_id(); }
int SentencePieceModel::eos_id() const { return impl_->processor.eos_id(); }

std::string SentencePieceModel::Encode(const std::string& text, std::vector<int>* ids) const {
  return Message(impl_->processor.Encode(text, ids));
}

std::string SentencePieceModel::Decode(const std::vector<int>& ids, std::string* text) const {
  return Message(impl_->processor.Decode(ids, text));
}

}  // namespace tinylm
