#include "wavekv/log.h"

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <mutex>
#include <utility>

#include "storage/log_message.h"

namespace wavekv {
namespace {

constexpr int kUnread = -1;  // the environment
std::atomic<int> level_now{kUnread};

std::mutex sink_mutex;
// Guarded by sink_mutex. Never destroyed: threads may speak until the process ends.
std::shared_ptr<const LogSink>& Sink() {
  static auto* const sink = new std::shared_ptr<const LogSink>;
  return *sink;
}

// "W 2026-05-04 12:34:56.789 4711 wavekv: message", in UTC, with the thread's number.
void WriteToStderr(LogLevel level, const std::string& message) {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  tm utc{};
  gmtime_r(&now.tv_sec, &utc);
  const std::string line = fmt::format(
      "{} {:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:03} {} wavekv: {}\n",
      static_cast<char>(LogLevelName(level)[0] - 'a' + 'A'), utc.tm_year + 1900, utc.tm_mon + 1,
      utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec, now.tv_nsec / 1000000, gettid(), message);
  // One call, so that lines of several threads do not mix.
  std::fwrite(line.data(), 1, line.size(), stderr);
}

LogLevel LevelOfEnvironment() {
  const char* const text = std::getenv("WAVEKV_LOG");
  if (text == nullptr || *text == '\0') return LogLevel::kWarning;
  for (int level = 0; level <= static_cast<int>(LogLevel::kDebug); ++level) {
    if (absl::string_view(text) == LogLevelName(static_cast<LogLevel>(level))) {
      return static_cast<LogLevel>(level);
    }
  }
  // Set first, as a sink may ask for the level.
  int unread = kUnread;
  level_now.compare_exchange_strong(unread, static_cast<int>(LogLevel::kWarning));
  GiveOut(LogLevel::kWarning,
          fmt::format("WAVEKV_LOG must be off, error, warning, info or debug, got \"{}\"", text));
  return LogLevel::kWarning;
}

}  // namespace

const char* LogLevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kOff:
      return "off";
    case LogLevel::kError:
      return "error";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kDebug:
      return "debug";
  }
  return "unknown";
}

LogLevel GetLogLevel() {
  if (const int level = level_now.load(std::memory_order_relaxed); level != kUnread) {
    return static_cast<LogLevel>(level);
  }
  // Read once, whoever comes first; SetLogLevel meanwhile wins.
  static const LogLevel of_environment = LevelOfEnvironment();
  int unread = kUnread;
  level_now.compare_exchange_strong(unread, static_cast<int>(of_environment));
  return static_cast<LogLevel>(level_now.load());
}

void SetLogLevel(LogLevel level) { level_now.store(static_cast<int>(level)); }

void SetLogSink(LogSink sink) {
  auto shared = sink ? std::make_shared<const LogSink>(std::move(sink)) : nullptr;
  std::lock_guard<std::mutex> lock(sink_mutex);
  Sink().swap(shared);
}

void GiveOut(LogLevel level, const std::string& message) {
  std::shared_ptr<const LogSink> sink;
  {
    std::lock_guard<std::mutex> lock(sink_mutex);
    sink = Sink();
  }
  // Outside of the lock: the sink may set another one.
  if (sink == nullptr) {
    WriteToStderr(level, message);
  } else {
    (*sink)(level, message);
  }
}

}  // namespace wavekv
