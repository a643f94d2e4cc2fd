#include "bench/memory_pressure.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_split.h"
#include "fmt/format.h"

namespace wavekv::bench {
namespace {

// A hierarchy of control groups that limits memory, and this process's group in it.
struct Hierarchy {
  std::string home;
  const char* limit_file = nullptr;
};

Hierarchy FindHierarchy() {
  std::ifstream groups("/proc/self/cgroup");  // lines of "id:controllers:path"
  Hierarchy unified;
  for (std::string line; std::getline(groups, line);) {
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    if (fields[1] == "memory") {
      return {"/sys/fs/cgroup/memory" + fields[2], "memory.limit_in_bytes"};
    }
    if (fields[1].empty()) unified = {"/sys/fs/cgroup" + fields[2], "memory.max"};
  }
  return unified;
}

bool Write(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text << std::flush;
  return file.good();
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryPressure>> MemoryPressure::Create(int64_t limit_bytes) {
  const Hierarchy hierarchy = FindHierarchy();
  const std::string group = fmt::format("{}/wavekv-bench-{}", hierarchy.home, getpid());
  if (hierarchy.limit_file == nullptr || mkdir(group.c_str(), 0755) != 0) {
    return absl::PermissionDeniedError(
        fmt::format("cannot make the control group {}: {}", group, std::strerror(errno)));
  }
  std::unique_ptr<MemoryPressure> pressure(new MemoryPressure(hierarchy.home, group));
  if (!Write(fmt::format("{}/{}", group, hierarchy.limit_file), std::to_string(limit_bytes)) ||
      !Write(group + "/cgroup.procs", std::to_string(getpid()))) {
    return absl::PermissionDeniedError(
        fmt::format("cannot limit the memory of control group {}", group));
  }
  return pressure;
}

MemoryPressure::~MemoryPressure() {
  Write(home_ + "/cgroup.procs", std::to_string(getpid()));
  rmdir(group_.c_str());
}

}  // namespace wavekv::bench
