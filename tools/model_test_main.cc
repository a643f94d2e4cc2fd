// wavekv-model-test: random operations on engines, compared with a simple model after every step.
#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "tests/api/random_world.h"
#include "tests/api/random_world_shape.h"
#include "tests/api/random_world_threads.h"
#include "tools/progress_bar.h"

namespace wavekv {
namespace {

using testing::DrawShape;
using testing::RandomWorld;
using testing::SharedWorld;
using testing::WorldShape;

constexpr char kUsage[] =
    "usage: wavekv-model-test [--ops N] [--seed S] [--shape S] [--world-ops N] [--mode MODE]\n"
    "  --ops N        operations in all (default 100000)\n"
    "  --seed S       seed of the first world; the next ones have S + 1, S + 2, ... (default 1)\n"
    "  --shape S      draw the shape of all engines from S, not from the world's own seed\n"
    "  --world-ops N  operations of a world before the next one begins (default 20000)\n"
    "  --mode MODE    repeatable: builds run between the operations, all follows from the seed\n"
    "                 builds: builds run beside the operations\n"
    "                 readers: builds and three reading threads run beside a writer\n"
    "                 all (default): one after the other, world by world\n"
    "Ends with 0 when the engine did as the model in every step, 1 when it did not (printed with\n"
    "seed, operation and what led there), 2 when an argument cannot be used.\n";

constexpr int kNumReaders = 3;
constexpr int64_t kReaderLengthMax = 400;  // versions of sequences are kept whole

enum class Mode { kRepeatable, kBuilds, kReaders, kAll };

const char* Name(Mode mode) {
  switch (mode) {
    case Mode::kRepeatable:
      return "repeatable";
    case Mode::kBuilds:
      return "builds";
    case Mode::kReaders:
      return "readers";
    case Mode::kAll:
      return "all";
  }
  return "";
}

struct Arguments {
  int64_t ops = 100000;
  uint64_t seed = 1;
  bool has_shape = false;
  uint64_t shape = 0;
  int64_t world_ops = 20000;
  Mode mode = Mode::kAll;
};

bool ParseMode(absl::string_view text, Mode* mode) {
  for (Mode one : {Mode::kRepeatable, Mode::kBuilds, Mode::kReaders, Mode::kAll}) {
    if (text != Name(one)) continue;
    *mode = one;
    return true;
  }
  return false;
}

bool ParseOption(absl::string_view name, absl::string_view value, Arguments* arguments) {
  if (name == "--ops") return absl::SimpleAtoi(value, &arguments->ops) && arguments->ops > 0;
  if (name == "--seed") return absl::SimpleAtoi(value, &arguments->seed);
  if (name == "--shape") {
    arguments->has_shape = true;
    return absl::SimpleAtoi(value, &arguments->shape);
  }
  if (name == "--world-ops") {
    return absl::SimpleAtoi(value, &arguments->world_ops) && arguments->world_ops > 0;
  }
  return name == "--mode" && ParseMode(value, &arguments->mode);
}

bool Parse(int argc, char** argv, Arguments* arguments) {
  for (int i = 1; i < argc; ++i) {
    const absl::string_view argument = argv[i];
    const size_t equals = argument.find('=');
    absl::string_view value;
    if (equals != absl::string_view::npos) {
      value = argument.substr(equals + 1);
    } else if (i + 1 < argc) {
      value = argv[++i];
    }
    if (ParseOption(argument.substr(0, equals), value, arguments)) continue;
    std::fprintf(stderr, "cannot use %s %s\n", std::string(argument.substr(0, equals)).c_str(),
                 std::string(value).c_str());
    return false;
  }
  return true;
}

// Counts operations over all worlds.
struct Progress {
  ProgressBar bar;
  int64_t done = 0;

  void Advance(int64_t num) {
    done += num;
    bar.Update(done);
  }
};

bool Report(uint64_t seed, Mode mode, const WorldShape& shape, int64_t operation,
            const absl::Status& status, const std::string& history) {
  std::printf("FAILED\nseed %" PRIu64 " mode %s operation %" PRId64 ": %s\nshape: %s\n%s", seed,
              Name(mode), operation, status.ToString().c_str(), ToString(shape).c_str(),
              history.c_str());
  return false;
}

bool RunCalls(uint64_t seed, Mode mode, const WorldShape& shape, int64_t ops, Progress* progress) {
  RandomWorld world(seed, shape,
                    mode == Mode::kRepeatable ? RandomWorld::Builds::kBetweenSteps
                                              : RandomWorld::Builds::kAnyTime);
  for (int64_t i = 1; i <= ops; ++i) {
    const absl::Status status = world.Step();
    if (!status.ok()) return Report(seed, mode, shape, i, status, world.History());
    progress->Advance(1);
  }
  const absl::Status status = world.Finish();
  if (!status.ok()) return Report(seed, mode, shape, ops, status, world.History());
  std::printf("seed %" PRIu64 " mode %s: %" PRId64 " operations: %s\n", seed, Name(mode), ops,
              ToString(world.counts()).c_str());
  return true;
}

bool RunReaders(uint64_t seed, WorldShape shape, int64_t ops, Progress* progress) {
  shape.options.build_threads = 2;
  shape.length_max = std::min(shape.length_max, kReaderLengthMax);
  SharedWorld world(seed, shape, kNumReaders);
  const absl::Status status = world.Run(ops);
  const testing::SharedWorldCounts& counts = world.counts();
  if (!status.ok()) return Report(seed, Mode::kReaders, shape, counts.writes, status, "");
  progress->Advance(ops);
  std::printf("seed %" PRIu64 " mode readers: %" PRId64 " operations: %" PRId64
              " answers and %" PRId64 " forks of readers, %" PRId64 " writes, %" PRId64
              " refused, %" PRId64 " aborted, %" PRId64 " sequences removed\n",
              seed, ops, counts.answers.load(), counts.forks.load(), counts.writes.load(),
              counts.refused.load(), counts.aborted.load(), counts.removed.load());
  return true;
}

int Main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (absl::string_view(argv[i]) != "--help") continue;
    std::fputs(kUsage, stdout);
    return 0;
  }
  Arguments arguments;
  if (!Parse(argc, argv, &arguments)) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  Progress progress{ProgressBar("model test", arguments.ops, "operations")};
  uint64_t seed = arguments.seed;
  int64_t next_mode = 0;
  while (progress.done < arguments.ops) {
    const int64_t ops = std::min(arguments.world_ops, arguments.ops - progress.done);
    const Mode mode =
        arguments.mode == Mode::kAll ? static_cast<Mode>(next_mode++ % 3) : arguments.mode;
    const WorldShape shape = DrawShape(arguments.has_shape ? arguments.shape : seed);
    const bool passed = mode == Mode::kReaders ? RunReaders(seed, shape, ops, &progress)
                                               : RunCalls(seed, mode, shape, ops, &progress);
    if (!passed) return 1;
    ++seed;
  }
  std::printf("PASSED %" PRId64 " operations, seeds %" PRIu64 " to %" PRIu64 "\n", progress.done,
              arguments.seed, seed - 1);
  return 0;
}

}  // namespace
}  // namespace wavekv

int main(int argc, char** argv) { return wavekv::Main(argc, argv); }
