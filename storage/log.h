// What wavekv says about itself while it runs.
//
// Messages go to stderr, one line each, or to a sink that the engine around wavekv sets. They name
// sequences by number and tenants by an opaque label; keys, values and tenant ids never appear.
#ifndef WAVEKV_STORAGE_LOG_H_
#define WAVEKV_STORAGE_LOG_H_

#include <cstdint>
#include <functional>

#include "absl/strings/string_view.h"
#include "wavekv/export.h"

namespace wavekv {

enum class LogLevel : uint8_t {
  kOff = 0,
  kError = 1,    // something is lost or wrong
  kWarning = 2,  // it goes on, worse than it should: segments that cannot be sealed
  kInfo = 3,     // engines opened and closed, memory refused, sequences evicted
  kDebug = 4,    // tenants, segments
};

// "off", "error", "warning", "info" or "debug".
WAVEKV_EXPORT const char* LogLevelName(LogLevel level);

// The level up to which messages are given out. At first that of the environment variable
// WAVEKV_LOG (a name as above), else kWarning. Threads: safe.
WAVEKV_EXPORT LogLevel GetLogLevel();
WAVEKV_EXPORT void SetLogLevel(LogLevel level);

// Called with each message, without a line's end, from whatever thread it arises in, possibly from
// several at once. Must not throw; may call wavekv, but not wait for the thread it is called from.
using LogSink = std::function<void(LogLevel level, absl::string_view message)>;

// Replaces the sink; an empty one stands for stderr. A call of the former sink may still be running
// when this returns. Threads: safe.
WAVEKV_EXPORT void SetLogSink(LogSink sink);

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_LOG_H_
