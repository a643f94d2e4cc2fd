// Runs a test once for every instruction set that this machine has and the kernels were built for.
#ifndef WAVEKV_TESTS_CPU_EACH_TARGET_H_
#define WAVEKV_TESTS_CPU_EACH_TARGET_H_

#include <cstdint>

#include "cpu/targets.h"
// Highway reads the above.
#include "absl/functional/function_ref.h"
#include "gtest/gtest.h"
#include "hwy/targets.h"

namespace wavekv::testing {

// Not for tests that run in parallel with others in one process: the choice is global.
inline void ForEachTarget(absl::FunctionRef<void()> test) {
  for (int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest != 0; rest &= rest - 1) {
    const int64_t target = rest & -rest;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::GetChosenTarget().Update(target);
    test();
  }
  hwy::GetChosenTarget().DeInit();
}

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_CPU_EACH_TARGET_H_
