// Where the time of calls goes: seconds by phase, and events for a picture when asked for.
#ifndef WAVEKV_API_STEP_OBSERVER_H_
#define WAVEKV_API_STEP_OBSERVER_H_

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace wavekv {

enum class Phase : uint8_t {
  kAppend,  // a whole call
  kAttend,  // a whole call; the eight below are its parts, as the thread that calls sees them:
            // once a call, or once for each (row, kv head) that it answers alone
  kPin,
  kLoad,      // queries to fp32, scaled, regrouped
  kRank,      // score all clusters, select
  kRead,      // exact attention: steady and retrieval zone
  kFetch,     // waiting for rows that are not in memory
  kEstimate,  // the other clusters
  kMerge,
  kStore,     // outputs to the caller's type and strides
  kRetrieve,  // a whole call
  kBuild,     // seal a segment, on a build thread
};
inline constexpr int kNumPhases = 12;

const char* PhaseName(Phase phase);

// Threads: safe.
class StepObserver {
 public:
  using Clock = std::chrono::steady_clock;
  // The newest events are kept.
  static constexpr int64_t kEventsMax = 65536;

  // With a trace_path events are kept too. INVALID_ARGUMENT when the file cannot be written.
  static absl::StatusOr<std::unique_ptr<StepObserver>> Create(const std::string& trace_path);

  // count: query rows, appended rows, or tokens of a segment.
  void Record(Phase phase, Clock::time_point begin, Clock::time_point end, int layer,
              int64_t count);

  double seconds(Phase phase) const {
    return static_cast<double>(nanos_[static_cast<int>(phase)].load()) * 1e-9;
  }

  const std::string& trace_path() const { return trace_path_; }

  // All kept events as Chrome's trace JSON. FAILED_PRECONDITION when there is no trace;
  // INVALID_ARGUMENT when the file cannot be written.
  absl::Status WriteTrace(const std::string& path) const;

 private:
  struct Event {
    Phase phase = Phase::kAppend;
    int layer = 0;
    int64_t thread = 0;
    int64_t begin_nanos = 0;  // since the observer began
    int64_t nanos = 0;
    int64_t count = 0;
  };

  explicit StepObserver(std::string trace_path) : trace_path_(std::move(trace_path)) {}

  const std::string trace_path_;  // empty: no events
  const Clock::time_point begin_ = Clock::now();
  std::array<std::atomic<int64_t>, kNumPhases> nanos_{};

  mutable std::mutex mutex_;
  // Guarded by mutex_. A ring: event i lies in i % kEventsMax.
  std::vector<Event> events_;
  int64_t num_events_ = 0;  // ever
};

// A phase from here to the end of the scope. Without an observer nothing is recorded.
class PhaseSpan {
 public:
  PhaseSpan(StepObserver* observer, Phase phase, int layer, int64_t count)
      : observer_(observer), phase_(phase), layer_(layer), count_(count) {}
  ~PhaseSpan() {
    if (observer_ == nullptr) return;
    observer_->Record(phase_, begin_, StepObserver::Clock::now(), layer_, count_);
  }
  PhaseSpan(const PhaseSpan&) = delete;
  PhaseSpan& operator=(const PhaseSpan&) = delete;

 private:
  StepObserver* const observer_;
  const Phase phase_;
  const int layer_;
  const int64_t count_;
  const StepObserver::Clock::time_point begin_ = StepObserver::Clock::now();
};

}  // namespace wavekv

#endif  // WAVEKV_API_STEP_OBSERVER_H_
