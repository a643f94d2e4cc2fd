// What wavekv-tinylm does.
#ifndef WAVEKV_EXAMPLES_TINYLM_COMMANDS_H_
#define WAVEKV_EXAMPLES_TINYLM_COMMANDS_H_

#include <string>

#include "absl/status/status.h"
#include "examples/tinylm/arguments.h"

namespace tinylm {

// Each prints its results to standard output and its progress to standard error. The model lies in
// arguments.model_directory.
absl::Status RunDemo(const Arguments& arguments);
absl::Status RunPrompt(const Arguments& arguments);
absl::Status RunTrace(const Arguments& arguments);

}  // namespace tinylm

#endif  // WAVEKV_EXAMPLES_TINYLM_COMMANDS_H_
