// Pages of the host's memory, for what is read at random places by any core.
#ifndef WAVEKV_STORAGE_HOST_PAGES_H_
#define WAVEKV_STORAGE_HOST_PAGES_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"

namespace wavekv {

struct HostPagesOptions {
  int64_t bytes = 0;
  // Threads that touch every page at once, so that nobody who uses one waits for it; 0: pages are
  // touched as they are used.
  int prefault_threads = 0;
  // Refuses more than the process may have even if pages are only touched later.
  bool within_limit = false;
  // For tests: the file that says how much memory this process may have ("max": no limit). nullptr:
  // that of its control group, version 1 or 2.
  const char* limit_path = nullptr;
};

// Zeros, mapped at once. In huge pages where the system has them, as small ones miss the TLB; where
// this process may use several NUMA nodes, the pages take turns on them: no node's memory is busier
// than another's, whichever cores read. The system may refuse either, which changes nothing but
// speed.
class HostPages {
 public:
  // RESOURCE_EXHAUSTED for more than the system maps, and for more than the process's limit if
  // pages are touched or `within_limit` says so: the system ends a process that touches more.
  static absl::StatusOr<std::unique_ptr<HostPages>> Map(const HostPagesOptions& options);
  ~HostPages();

  HostPages(const HostPages&) = delete;
  HostPages& operator=(const HostPages&) = delete;

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  // Whether the system took the wish for huge pages. It gives as many as it has.
  bool huge_pages_advised() const { return huge_pages_advised_; }
  // NUMA nodes on which the pages take turns; 1: they lie where they are touched first.
  int num_nodes() const { return num_nodes_; }

 private:
  HostPages(std::byte* data, int64_t bytes) : data_(data), bytes_(bytes) {}

  void Interleave();
  void Touch(int num_threads);

  std::byte* const data_;
  const int64_t bytes_;
  bool huge_pages_advised_ = false;
  int num_nodes_ = 1;
};

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_HOST_PAGES_H_
