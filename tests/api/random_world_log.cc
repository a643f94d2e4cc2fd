#include "tests/api/random_world_log.h"

#include <utility>

namespace wavekv::testing {
namespace {

// Readers that take longer are not compared.
constexpr size_t kVersionsMax = 40;

}  // namespace

SequenceLog::SequenceLog(Sequence handle, size_t tenant, ModelSequence empty)
    : handle_(std::move(handle)), tenant_(tenant) {
  versions_.push_back(std::make_shared<const ModelSequence>(std::move(empty)));
}

SequenceLog::Version SequenceLog::latest() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return versions_[versions_.size() - (announced_ ? 2 : 1)];
}

void SequenceLog::Announce(ModelSequence next) {
  auto version = std::make_shared<const ModelSequence>(std::move(next));
  std::lock_guard<std::mutex> lock(mutex_);
  versions_.push_back(std::move(version));
  announced_ = true;
  if (versions_.size() <= kVersionsMax) return;
  versions_.pop_front();
  ++first_;
}

void SequenceLog::Confirm() {
  std::lock_guard<std::mutex> lock(mutex_);
  announced_ = false;
}

void SequenceLog::Withdraw() {
  std::lock_guard<std::mutex> lock(mutex_);
  versions_.pop_back();
  announced_ = false;
}

int64_t SequenceLog::Now() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return first_ + static_cast<int64_t>(versions_.size()) - (announced_ ? 2 : 1);
}

std::vector<SequenceLog::Version> SequenceLog::Since(int64_t since) const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (since < first_) return {};
  return {versions_.begin() + (since - first_), versions_.end()};
}

}  // namespace wavekv::testing
