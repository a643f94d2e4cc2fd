#include "api/step_observer.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "wavekv/version.h"

namespace wavekv {
namespace {

using OpenFile = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

absl::Status CannotWrite(const char* field, const std::string& path) {
  return absl::InvalidArgumentError(
      fmt::format("{}: cannot write \"{}\": {}", field, path, std::strerror(errno)));
}

const char* CountName(Phase phase) { return phase == Phase::kBuild ? "tokens" : "rows"; }

}  // namespace

const char* PhaseName(Phase phase) {
  switch (phase) {
    case Phase::kAppend:
      return "append";
    case Phase::kAttend:
      return "attend";
    case Phase::kPin:
      return "pin";
    case Phase::kLoad:
      return "load";
    case Phase::kRank:
      return "rank";
    case Phase::kRead:
      return "read";
    case Phase::kFetch:
      return "fetch";
    case Phase::kEstimate:
      return "estimate";
    case Phase::kMerge:
      return "merge";
    case Phase::kStore:
      return "store";
    case Phase::kRetrieve:
      return "retrieve";
    case Phase::kBuild:
      return "build";
  }
  return "unknown";
}

absl::StatusOr<std::unique_ptr<StepObserver>> StepObserver::Create(const std::string& trace_path) {
  auto observer = std::unique_ptr<StepObserver>(new StepObserver(trace_path));
  if (trace_path.empty()) return observer;
  // Better now than when the engine closes.
  const OpenFile file(std::fopen(trace_path.c_str(), "ab"), &std::fclose);
  if (file == nullptr) return CannotWrite("trace_path", trace_path);
  observer->events_.resize(kEventsMax);
  return observer;
}

void StepObserver::Record(Phase phase, Clock::time_point begin, Clock::time_point end, int layer,
                          int64_t count) {
  const int64_t nanos = std::chrono::nanoseconds(end - begin).count();
  nanos_[static_cast<int>(phase)].fetch_add(nanos, std::memory_order_relaxed);
  if (trace_path_.empty()) return;
  thread_local const int64_t thread = gettid();
  std::lock_guard<std::mutex> lock(mutex_);
  events_[num_events_++ % kEventsMax] = {
      phase, layer, thread, std::chrono::nanoseconds(begin - begin_).count(), nanos, count};
}

absl::Status StepObserver::WriteTrace(const std::string& path) const {
  if (trace_path_.empty()) {
    return absl::FailedPreconditionError(
        "trace_path: the engine was opened without one, so no events were kept");
  }
  std::vector<Event> events;
  int64_t dropped = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    dropped = std::max<int64_t>(0, num_events_ - kEventsMax);
    for (int64_t i = dropped; i < num_events_; ++i) events.push_back(events_[i % kEventsMax]);
  }
  OpenFile file(std::fopen(path.c_str(), "wb"), &std::fclose);
  if (file == nullptr) return CannotWrite("path", path);
  const auto write = [&file](const std::string& text) {
    return std::fwrite(text.data(), 1, text.size(), file.get()) == text.size();
  };
  bool written = write(fmt::format(
      "{{\"displayTimeUnit\": \"ms\", \"otherData\": {{\"wavekv\": \"{}\", \"dropped_events\": "
      "{}}},\n\"traceEvents\": [\n{{\"name\": \"process_name\", \"ph\": \"M\", \"pid\": {}, "
      "\"args\": {{\"name\": \"wavekv\"}}}}",
      WAVEKV_VERSION, dropped, getpid()));
  for (size_t i = 0; i < events.size() && written; ++i) {
    const Event& event = events[i];
    written = write(fmt::format(
        ",\n{{\"name\": \"{}\", \"cat\": \"wavekv\", \"ph\": \"X\", \"ts\": {:.3f}, \"dur\": "
        "{:.3f}, \"pid\": {}, \"tid\": {}, \"args\": {{\"layer\": {}, \"{}\": {}}}}}",
        PhaseName(event.phase), static_cast<double>(event.begin_nanos) * 1e-3,
        static_cast<double>(event.nanos) * 1e-3, getpid(), event.thread, event.layer,
        CountName(event.phase), event.count));
  }
  written = written && write("\n]}\n");
  if (std::fclose(file.release()) != 0 || !written) return CannotWrite("path", path);
  return absl::OkStatus();
}

}  // namespace wavekv
