// Steps of a storage test that run at the same time: which may meet, and in which order the threads
// take them.
#ifndef WAVEKV_TESTS_STORAGE_CASES_PARALLEL_GROUP_H_
#define WAVEKV_TESTS_STORAGE_CASES_PARALLEL_GROUP_H_

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/storage_test.pb.h"

namespace wavekv::testing {

inline constexpr char kDefaultTenant[] = "tenant";
inline constexpr char kDefaultSequence[] = "sequence";
inline constexpr int kParallelThreadsMax = 16;

// The step's names, or the default ones.
std::string TenantOf(const v1::Step& step);
std::string SequenceOf(const v1::Step& step);

// Sequences that steps of the group create or fork: they do not exist before it.
std::set<std::string> SequencesBornIn(const v1::Parallel& group);

// Numbers of steps that go one after another, each in file order: those that change the same
// sequence's tokens, and all that use one which is born in the group. Every step is in one strand.
std::vector<std::vector<int>> Strands(const v1::Parallel& group);

// Whether what the query answers can be compared: no other strand truncates or creates its
// sequence.
bool AnswersAreComparable(const v1::Parallel& group, int query);

// INVALID_ARGUMENT naming the step when what the group must do is not defined.
absl::Status CheckParallel(const v1::Parallel& group);

// Calls take(step) `repeat` times for each step, on group.threads threads, all of a strand's on the
// same. Deterministic but for how the threads interleave.
void RunStrands(const v1::Parallel& group, const std::function<void(int step)>& take);

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_STORAGE_CASES_PARALLEL_GROUP_H_
