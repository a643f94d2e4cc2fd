// The command line of wavekv-tinylm.
#ifndef WAVEKV_EXAMPLES_TINYLM_ARGUMENTS_H_
#define WAVEKV_EXAMPLES_TINYLM_ARGUMENTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "wavekv/options.h"

namespace tinylm {

enum class Command {
  kHelp,    // print HelpText()
  kDemo,    // find needles in a long document
  kPrompt,  // continue the user's text
  kTrace,   // record the attention of an evaluation document
};

// Rows of sealed segments in a file instead of DRAM.
struct Tiers {
  std::string directory;  // empty: all in DRAM
  int dram_pct = 25;      // cache, in percent of the KV cache
};

struct Arguments {
  Command command = Command::kHelp;
  std::string model_directory;  // empty: the one that was built in
  int threads = 0;              // 0: one per processor
  wavekv::AttendOptions wave;   // the zones of decode steps
  int64_t context = 32768;      // tokens of an evaluation document
  wavekv::Device device = wavekv::Device::kCpu;
  Tiers tiers;

  // demo
  std::vector<std::string> tasks = {"niah", "vt"};
  int prompts = 20;  // per task

  // prompt and trace
  std::string prompt_file;  // "-": standard input
  int max_tokens = 100;
  bool dense = false;
  std::string trace_file;
  int document = 0;
};

// INVALID_ARGUMENT naming the option with expected and got.
absl::StatusOr<Arguments> ParseArguments(int argc, const char* const* argv);

// What --help prints.
const char* HelpText();

}  // namespace tinylm

#endif  // WAVEKV_EXAMPLES_TINYLM_ARGUMENTS_H_
