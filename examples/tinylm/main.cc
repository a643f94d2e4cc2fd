// wavekv-tinylm: see HelpText().
#include <iostream>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "examples/tinylm/arguments.h"
#include "examples/tinylm/commands.h"
#include "tools/cpp/runfiles/runfiles.h"

namespace tinylm {
namespace {

enum ExitStatus : int { kDone = 0, kFailed = 1, kWrongUsage = 2 };

// The model that was built beside the program.
absl::StatusOr<std::string> BuiltInModelDirectory(const char* program) {
  using bazel::tools::cpp::runfiles::Runfiles;
  std::string error;
  const std::unique_ptr<Runfiles> runfiles(Runfiles::Create(program, &error));
  if (runfiles == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("the model's files: ", error, "; name them by --model"));
  }
  return runfiles->Rlocation("wavekv/examples/tinylm/data");
}

absl::Status Run(const Arguments& arguments) {
  switch (arguments.command) {
    case Command::kHelp:
      std::cout << HelpText();
      return absl::OkStatus();
    case Command::kDemo:
      return RunDemo(arguments);
    case Command::kPrompt:
      return RunPrompt(arguments);
    case Command::kTrace:
      return RunTrace(arguments);
  }
  return absl::InternalError("unknown command");
}

int Main(int argc, char** argv) {
  absl::StatusOr<Arguments> arguments = ParseArguments(argc, argv);
  if (!arguments.ok()) {
    std::cerr << "wavekv-tinylm: " << arguments.status().message()
              << "\nTry 'wavekv-tinylm --help'.\n";
    return kWrongUsage;
  }
  absl::Status status;
  if (arguments->command != Command::kHelp && arguments->model_directory.empty()) {
    absl::StatusOr<std::string> directory = BuiltInModelDirectory(argv[0]);
    status = directory.status();
    if (directory.ok()) arguments->model_directory = *std::move(directory);
  }
  if (status.ok()) status = Run(*arguments);
  if (!status.ok()) {
    std::cerr << "wavekv-tinylm: " << status.message() << "\n";
    return kFailed;
  }
  return kDone;
}

}  // namespace
}  // namespace tinylm

int main(int argc, char** argv) { return tinylm::Main(argc, argv); }
