#include "wavekv/instruction_sets.h"

#include <atomic>
#include <cstdint>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cpu/targets.h"
// Highway reads the above.
#include "hwy/highway.h"

namespace wavekv {
namespace {

constexpr int64_t kAvx512 = HWY_AVX3 | HWY_AVX3_DL;

// A target of Highway, and whether it may use more than Highway knows.
struct InstructionSet {
  std::string name;
  int64_t target;
  bool bf16_products = false;
  bool integer_products = false;
};

std::string NameOf(int64_t target) {
  if (target == HWY_AVX3) return "avx512";
  if (target == HWY_AVX3_DL) return "avx512_dl";
  return absl::AsciiStrToLower(hwy::TargetName(target));
}

bool HasBf16Products() {
#if HWY_ARCH_X86
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

bool HasIntegerProducts() {
#if HWY_ARCH_X86
  return __builtin_cpu_supports("avx512vnni") != 0;
#else
  return false;
#endif
}

// The least first. Highway gives better targets lower bits.
std::vector<InstructionSet> Find() {
  std::vector<InstructionSet> sets;
  const int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  for (int bit = 62; bit >= 0; --bit) {
    const int64_t target = targets & (int64_t{1} << bit);
    if (target == 0) continue;
    sets.push_back({NameOf(target), target});
    if ((target & kAvx512) == 0) continue;
    // Machines with the former have the latter.
    if (HasBf16Products()) {
      sets.push_back({NameOf(target) + "_bf16", target, true, true});
    } else if (HasIntegerProducts()) {
      sets.push_back({NameOf(target) + "_vnni", target, false, true});
    }
  }
  return sets;
}

std::atomic<bool> may_use_bf16_products{true};
std::atomic<bool> may_use_integer_products{true};

}  // namespace

std::vector<std::string> InstructionSets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : Find()) names.push_back(set.name);
  return names;
}

absl::Status SetInstructionSet(absl::string_view name) {
  if (name.empty()) {
    hwy::GetChosenTarget().DeInit();
    may_use_bf16_products.store(true);
    may_use_integer_products.store(true);
    return absl::OkStatus();
  }
  for (const InstructionSet& set : Find()) {
    if (set.name != name) continue;
    hwy::GetChosenTarget().Update(set.target);
    may_use_bf16_products.store(set.bf16_products);
    may_use_integer_products.store(set.integer_products);
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("instruction set must be one of ",
                                                 absl::StrJoin(InstructionSets(), ", "),
                                                 " on this machine, got \"", name, "\""));
}

namespace cpu {

bool UsesBf16Products() {
  static const bool has = HasBf16Products();
  return has && may_use_bf16_products.load(std::memory_order_relaxed);
}

bool UsesIntegerProducts() {
  static const bool has = HasIntegerProducts();
  return has && may_use_integer_products.load(std::memory_order_relaxed);
}

}  // namespace cpu
}  // namespace wavekv
