#include "buffer/temporary_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "buffer/io_error.h"

namespace wavekv {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = ".wavekv-backing-";

// Whoever made these names removes them next, or is dead: either way they may go.
void RemoveLeftNames(const std::string& directory) {
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.compare(0, sizeof(kPrefix) - 1, kPrefix) == 0) unlink(entry->path().c_str());
  }
}

int OpenNamed(const std::string& directory) {
  RemoveLeftNames(directory);
  std::string path = directory + "/" + kPrefix + "XXXXXX";
  const int fd = mkostemp(path.data(), O_CLOEXEC);
  if (fd >= 0) unlink(path.c_str());
  return fd;
}

}  // namespace

absl::StatusOr<TemporaryFile> TemporaryFile::Create(const std::string& directory, bool unnamed) {
  int fd = -1;
  if (unnamed) {
    fd = open(directory.c_str(), O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    // A file system, or a kernel, that does not know O_TMPFILE.
    unnamed = fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL);
  }
  if (!unnamed) fd = OpenNamed(directory);
  if (fd < 0) return IoError(errno, "backing file in " + directory);
  return TemporaryFile(fd);
}

TemporaryFile::~TemporaryFile() {
  if (fd_ >= 0) close(fd_);
}

TemporaryFile::TemporaryFile(TemporaryFile&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

bool TemporaryFile::TryDirect(int64_t alignment_bytes) {
  const int flags = fcntl(fd_, F_GETFL);
  if (flags < 0 || fcntl(fd_, F_SETFL, flags | O_DIRECT) != 0) return false;
  // The second of two blocks, at an address that is aligned to no more than a block.
  const auto size = static_cast<size_t>(2 * alignment_bytes);
  const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(size, 2 * size),
                                                           &std::free);
  bool is_taken = memory != nullptr;
  if (is_taken) {
    auto* const block = static_cast<std::byte*>(memory.get()) + alignment_bytes;
    std::fill(block, block + size, std::byte{0});
    is_taken = pwrite(fd_, block, size, 0) == static_cast<ssize_t>(size) &&
               pread(fd_, block, alignment_bytes, alignment_bytes) == alignment_bytes;
  }
  if (ftruncate(fd_, 0) != 0) is_taken = false;
  if (!is_taken) fcntl(fd_, F_SETFL, flags);
  return is_taken;
}

}  // namespace wavekv
