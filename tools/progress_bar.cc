#include "tools/progress_bar.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

#include "absl/strings/str_format.h"

namespace wavekv {

ProgressBar::ProgressBar(std::string label, int64_t total, std::string unit)
    : label_(std::move(label)),
      total_(total),
      unit_(std::move(unit)),
      is_terminal_(isatty(STDERR_FILENO) != 0),
      start_(Clock::now()),
      shown_(start_) {}

ProgressBar::~ProgressBar() {
  if (line_is_open_) std::fputc('\n', stderr);
}

void ProgressBar::Update(int64_t num_done) {
  const bool is_last = num_done == total_;
  const auto now = Clock::now();
  const std::chrono::milliseconds interval(is_terminal_ ? 100 : 10000);
  if (!is_last && now - shown_ < interval) return;
  shown_ = now;

  const double elapsed_seconds = seconds();
  const std::string text = absl::StrFormat("%s: %d of %d %s, %.*f %s/s, %.0f s", label_, num_done,
                                           total_, unit_, num_done < 100 * elapsed_seconds ? 1 : 0,
                                           num_done / elapsed_seconds, unit_, elapsed_seconds);
  if (!is_terminal_) {
    std::fprintf(stderr, "%s\n", text.c_str());
    return;
  }
  constexpr int64_t kWidth = 24;
  const auto filled = static_cast<size_t>(num_done * kWidth / total_);
  const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
  // Back to the first column and clear what a longer line left.
  std::fprintf(stderr, "\r[%s] %s\033[K%s", bar.c_str(), text.c_str(), is_last ? "\n" : "");
  std::fflush(stderr);
  line_is_open_ = !is_last;
}

double ProgressBar::seconds() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

}  // namespace wavekv
