#include "tests/storage_cases/parallel_group.h"

#include <algorithm>
#include <barrier>
#include <map>
#include <numeric>
#include <random>
#include <thread>
#include <utility>

#include "fmt/format.h"

namespace wavekv::testing {
namespace {

// The sequences whose tokens the step changes.
std::vector<std::string> Changes(const v1::Step& step) {
  if (step.has_fork()) return {step.fork().child()};
  if (step.has_append() || step.has_truncate() || step.has_create_sequence() || step.has_remove()) {
    return {SequenceOf(step)};
  }
  return {};
}

// The strand of each step, by the number of one of its steps.
std::vector<int> StrandOfSteps(const v1::Parallel& group) {
  const std::set<std::string> born = SequencesBornIn(group);
  std::vector<int> strand(group.steps_size());
  std::iota(strand.begin(), strand.end(), 0);
  std::map<std::string, int> first_step;  // that shares the sequence
  for (int s = 0; s < group.steps_size(); ++s) {
    std::vector<std::string> shared = Changes(group.steps(s));
    if (born.contains(SequenceOf(group.steps(s)))) shared.push_back(SequenceOf(group.steps(s)));
    for (const std::string& name : shared) {
      const auto [first, is_new] = first_step.try_emplace(name, s);
      if (is_new) continue;
      const int from = strand[s];
      const int to = strand[first->second];
      std::replace(strand.begin(), strand.end(), from, to);
    }
  }
  return strand;
}

bool ChangedByAnotherStrand(const v1::Parallel& group, int step,
                            const std::function<bool(const v1::Step&)>& how) {
  const std::vector<int> strand = StrandOfSteps(group);
  for (int s = 0; s < group.steps_size(); ++s) {
    if (strand[s] == strand[step] || SequenceOf(group.steps(s)) != SequenceOf(group.steps(step))) {
      continue;
    }
    if (how(group.steps(s))) return true;
  }
  return false;
}

int64_t Repeat(const v1::Step& step) { return std::max<int64_t>(1, step.repeat()); }

}  // namespace

std::string TenantOf(const v1::Step& step) {
  return step.tenant().empty() ? kDefaultTenant : step.tenant();
}

std::string SequenceOf(const v1::Step& step) {
  return step.sequence().empty() ? kDefaultSequence : step.sequence();
}

std::set<std::string> SequencesBornIn(const v1::Parallel& group) {
  std::set<std::string> names;
  for (const v1::Step& step : group.steps()) {
    if (step.has_fork()) names.insert(step.fork().child());
    if (step.has_create_sequence()) names.insert(SequenceOf(step));
  }
  return names;
}

std::vector<std::vector<int>> Strands(const v1::Parallel& group) {
  std::map<int, std::vector<int>> by_strand;
  const std::vector<int> strand = StrandOfSteps(group);
  for (int s = 0; s < group.steps_size(); ++s) by_strand[strand[s]].push_back(s);
  std::vector<std::vector<int>> strands;
  for (auto& [number, steps] : by_strand) strands.push_back(std::move(steps));
  return strands;
}

bool AnswersAreComparable(const v1::Parallel& group, int query) {
  // A strand's own changes count too: what is compared is the sequence after the group, cut to the
  // length that the query saw.
  const std::string name = SequenceOf(group.steps(query));
  if (SequencesBornIn(group).contains(name)) return false;
  return std::none_of(group.steps().begin(), group.steps().end(), [&](const v1::Step& step) {
    return step.has_truncate() && SequenceOf(step) == name;
  });
}

absl::Status CheckParallel(const v1::Parallel& group) {
  if (group.threads() > kParallelThreadsMax) {
    return absl::InvalidArgumentError(fmt::format("parallel.threads must be at most {}, got {}",
                                                  kParallelThreadsMax, group.threads()));
  }
  if (group.steps().empty()) return absl::InvalidArgumentError("parallel.steps: got none");
  for (int s = 0; s < group.steps_size(); ++s) {
    const v1::Step& step = group.steps(s);
    const auto shortens = [](const v1::Step& other) {
      return other.has_truncate() || other.has_create_sequence();
    };
    const auto appends = [](const v1::Step& other) { return other.has_append(); };
    if (!step.has_fork()) continue;
    if (ChangedByAnotherStrand(group, s, shortens)) {
      return absl::InvalidArgumentError(fmt::format(
          "parallel.steps[{}]: what the fork has is not defined while another step truncates or "
          "creates its parent {}",
          s, SequenceOf(step)));
    }
    if (!step.fork().has_prefix_tokens() && ChangedByAnotherStrand(group, s, appends)) {
      return absl::InvalidArgumentError(fmt::format(
          "parallel.steps[{}]: fork.prefix_tokens must say what the fork has while another step "
          "appends to its parent {}",
          s, SequenceOf(step)));
    }
  }
  return absl::OkStatus();
}

void RunStrands(const v1::Parallel& group, const std::function<void(int step)>& take) {
  const int num_threads = group.threads() == 0 ? 2 : static_cast<int>(group.threads());
  std::vector<std::vector<int>> strands = Strands(group);
  std::shuffle(strands.begin(), strands.end(), std::mt19937_64(group.seed()));

  std::barrier start(num_threads);
  const auto run = [&](int thread) {
    std::vector<std::vector<int>> left;  // of each own strand, its steps to come, last first
    for (size_t i = thread; i < strands.size(); i += num_threads) {
      std::vector<int> steps;
      for (auto step = strands[i].rbegin(); step != strands[i].rend(); ++step) {
        steps.insert(steps.end(), Repeat(group.steps(*step)), *step);
      }
      left.push_back(std::move(steps));
    }
    std::mt19937_64 random(group.seed() + static_cast<uint64_t>(thread));
    start.arrive_and_wait();
    while (!left.empty()) {
      const size_t pick = random() % left.size();
      take(left[pick].back());
      left[pick].pop_back();
      if (left[pick].empty()) left.erase(left.begin() + static_cast<std::ptrdiff_t>(pick));
    }
  };
  std::vector<std::thread> threads;
  for (int thread = 0; thread < num_threads; ++thread) threads.emplace_back(run, thread);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace wavekv::testing
