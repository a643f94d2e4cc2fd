// Shows how far a long piece of work has come.
#ifndef WAVEKV_TOOLS_PROGRESS_BAR_H_
#define WAVEKV_TOOLS_PROGRESS_BAR_H_

#include <chrono>
#include <cstdint>
#include <string>

namespace wavekv {

// Writes to stderr: one moving line on a terminal, else a plain line every few seconds. The last
// line stays.
class ProgressBar {
 public:
  // "label: 3 of `total` unit, ..."
  ProgressBar(std::string label, int64_t total, std::string unit);
  // Ends the line of work that was given up, so that a message has one of its own.
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void Update(int64_t num_done);
  double seconds() const;

 private:
  using Clock = std::chrono::steady_clock;

  const std::string label_;
  const int64_t total_;
  const std::string unit_;
  const bool is_terminal_;
  const Clock::time_point start_;
  Clock::time_point shown_;
  bool line_is_open_ = false;  // on a terminal
};

}  // namespace wavekv

#endif  // WAVEKV_TOOLS_PROGRESS_BAR_H_
