// Runs a test once for every instruction set that this machine has and the kernels were built for.
#ifndef WAVEKV_TESTS_CPU_EACH_TARGET_H_
#define WAVEKV_TESTS_CPU_EACH_TARGET_H_

#include <string>

#include "absl/functional/function_ref.h"
#include "cpu/targets.h"
#include "gtest/gtest.h"
#include "wavekv/instruction_sets.h"

namespace wavekv::testing {

// Not for tests that run in parallel with others in one process: the choice is global.
inline void ForEachTarget(absl::FunctionRef<void()> test) {
  for (const std::string& name : InstructionSets()) {
    SCOPED_TRACE(name);
    const absl::Status status = SetInstructionSet(name);
    ASSERT_TRUE(status.ok()) << status.ToString();
    test();
  }
  ASSERT_TRUE(SetInstructionSet("").ok());
}

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_CPU_EACH_TARGET_H_
