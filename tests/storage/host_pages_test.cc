#include "storage/host_pages.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace wavekv {
namespace {

std::string LimitFile(const std::string& text) {
  const std::string path = ::testing::TempDir() + "/memory.max";
  std::ofstream(path) << text << "\n";
  return path;
}

TEST(HostPagesTest, AreZeroWhoeverTouchesThem) {
  for (const int threads : {0, 1, 3}) {
    const auto pages = HostPages::Map({.bytes = 153601, .prefault_threads = threads});
    ASSERT_TRUE(pages.ok()) << pages.status();
    EXPECT_EQ((*pages)->bytes(), 153601);
    const std::byte* const begin = (*pages)->data();
    EXPECT_EQ(std::count(begin, begin + 153601, std::byte{0}), 153601);
  }
}

TEST(HostPagesTest, TheLimitOfTheControlGroupHolds) {
  const std::string path = LimitFile("1048576");
  const auto map = [&](int64_t bytes, int threads, bool within_limit) {
    return HostPages::Map({.bytes = bytes,
                           .prefault_threads = threads,
                           .within_limit = within_limit,
                           .limit_path = path.c_str()});
  };
  EXPECT_TRUE(map(1 << 20, 2, true).ok());
  // What is only reserved may be more.
  EXPECT_TRUE(map(1 << 21, 0, false).ok());
  for (const auto& [threads, within] : {std::pair{0, true}, {2, false}, {2, true}}) {
    const absl::Status status = map((1 << 20) + 1, threads, within).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_NE(status.message().find("1048576 bytes that the process may have"), std::string::npos)
        << status;
  }
  LimitFile("max");
  EXPECT_TRUE(map(1 << 21, 2, true).ok());
}

TEST(HostPagesTest, SaysWhereItsPagesAre) {
  const auto pages = HostPages::Map({.bytes = 1 << 24});
  ASSERT_TRUE(pages.ok()) << pages.status();
  // The line of the kernel that says on which nodes this process may have memory: "0", "0-1,4".
  int num_nodes = 0;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    int first = 0, last = 0, read = 0;
    if (line.rfind("Mems_allowed_list:", 0) != 0) continue;
    for (const char* at = line.c_str() + sizeof("Mems_allowed_list:") - 1; *at != 0;) {
      if (std::sscanf(at, "%d-%d%n", &first, &last, &read) != 2) {
        ASSERT_EQ(std::sscanf(at, "%d%n", &first, &read), 1) << line;
        last = first;
      }
      num_nodes += last - first + 1;
      at += read;
      if (*at == ',') ++at;
    }
  }
  EXPECT_GE((*pages)->num_nodes(), 1);
  EXPECT_LE((*pages)->num_nodes(), std::max(num_nodes, 1));
  if (std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled").good()) {
    EXPECT_TRUE((*pages)->huge_pages_advised());
  }
}

}  // namespace
}  // namespace wavekv
