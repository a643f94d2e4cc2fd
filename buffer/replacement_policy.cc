#include "buffer/replacement_policy.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "buffer/lru_policy.h"
#include "buffer/policy_slots.h"
#include "buffer/s3_fifo_policy.h"
#include "buffer/slru_policy.h"

namespace wavekv {

const char* ReplacementKindName(ReplacementKind kind) {
  switch (kind) {
    case ReplacementKind::kLru:
      return "lru";
    case ReplacementKind::kSlru:
      return "slru";
    case ReplacementKind::kS3Fifo:
      return "s3fifo";
  }
  return "unknown";
}

absl::StatusOr<ReplacementKind> ParseReplacementKind(absl::string_view name) {
  for (const ReplacementKind kind :
       {ReplacementKind::kLru, ReplacementKind::kSlru, ReplacementKind::kS3Fifo}) {
    if (name == ReplacementKindName(kind)) return kind;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("replacement: expected lru, slru or s3fifo, got '", name, "'"));
}

absl::StatusOr<std::shared_ptr<PolicySlots>> MakePolicySlots(ReplacementKind kind,
                                                             int64_t num_slots) {
  if (num_slots < 1 || num_slots > kPolicySlotsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_slots: expected 1 to ", kPolicySlotsMax, " slots, got ", num_slots));
  }
  return std::make_shared<PolicySlots>(kind, static_cast<uint32_t>(num_slots));
}

std::unique_ptr<ReplacementPolicy> MakeReplacementPolicy(std::shared_ptr<PolicySlots> slots) {
  switch (slots->kind) {
    case ReplacementKind::kSlru:
      return std::make_unique<SlruPolicy>(std::move(slots));
    case ReplacementKind::kS3Fifo:
      return std::make_unique<S3FifoPolicy>(std::move(slots));
    case ReplacementKind::kLru:
      break;
  }
  return std::make_unique<LruPolicy>(std::move(slots));
}

absl::StatusOr<std::unique_ptr<ReplacementPolicy>> MakeReplacementPolicy(ReplacementKind kind,
                                                                         int64_t num_slots) {
  auto slots = MakePolicySlots(kind, num_slots);
  if (!slots.ok()) return slots.status();
  return MakeReplacementPolicy(*std::move(slots));
}

}  // namespace wavekv
