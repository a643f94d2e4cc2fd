#include "buffer/slot_memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <limits>
#include <string>

#include "gtest/gtest.h"

namespace wavekv {
namespace {

std::string LimitFile(const std::string& text) {
  const std::string path = ::testing::TempDir() + "/memory.max";
  std::ofstream(path) << text << "\n";
  return path;
}

TEST(SlotMemoryTest, SlotsLieSideBySideAndAreZero) {
  for (const int threads : {0, 1, 3}) {
    const auto memory = SlotMemory::Create(
        {.num_slots = 100, .slot_bytes = 1536, .prefault_threads = threads, .limit_path = ""});
    ASSERT_TRUE(memory.ok()) << memory.status();
    EXPECT_EQ((*memory)->bytes(), 153600);
    EXPECT_EQ((*memory)->slot(99), (*memory)->slot(0) + 99 * 1536);
    for (int64_t i = 0; i < (*memory)->bytes(); ++i) {
      ASSERT_EQ((*memory)->slot(0)[i], std::byte{0});
    }
    EXPECT_GE((*memory)->create_seconds(), 0.0);
  }
}

TEST(SlotMemoryTest, TheLimitOfTheControlGroupHolds) {
  const std::string path = LimitFile("1048576");
  const auto create = [&](int64_t num_slots) {
    return SlotMemory::Create(
        {.num_slots = num_slots, .slot_bytes = 4096, .limit_path = path.c_str()});
  };
  EXPECT_TRUE(create(256).ok());
  const absl::Status status = create(257).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("1048576 bytes that the process may have"), std::string::npos)
      << status;
  LimitFile("max");
  EXPECT_TRUE(create(257).ok());
}

TEST(SlotMemoryTest, SaysWhereItsPagesAre) {
  const auto memory = SlotMemory::Create({.num_slots = 4096, .slot_bytes = 4096});
  ASSERT_TRUE(memory.ok()) << memory.status();
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
  EXPECT_GE((*memory)->num_nodes(), 1);
  EXPECT_LE((*memory)->num_nodes(), std::max(num_nodes, 1));
  if (std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled").good()) {
    EXPECT_TRUE((*memory)->huge_pages_advised());
  }
}

TEST(SlotMemoryTest, SizesThatAreNoneAreRefused) {
  for (const auto& [slots, bytes] : {std::pair<int64_t, int64_t>{0, 4096}, {-1, 4096}, {4, 0}}) {
    EXPECT_EQ(SlotMemory::Create({.num_slots = slots, .slot_bytes = bytes}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  // Beyond 64 bits, and beyond any address space.
  for (const int64_t slots : {std::numeric_limits<int64_t>::max(), int64_t{1} << 50}) {
    EXPECT_EQ(SlotMemory::Create({.num_slots = slots, .slot_bytes = 4096}).status().code(),
              absl::StatusCode::kResourceExhausted);
  }
}

}  // namespace
}  // namespace wavekv
