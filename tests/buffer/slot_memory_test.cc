#include "buffer/slot_memory.h"

#include <cstdint>
#include <fstream>
#include <limits>
#include <string>

#include "gtest/gtest.h"

namespace wavekv {
namespace {

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

TEST(SlotMemoryTest, TheLimitOfTheProcessHolds) {
  const std::string path = ::testing::TempDir() + "/memory.max";
  std::ofstream(path) << "1048576\n";
  const auto create = [&](int64_t num_slots) {
    return SlotMemory::Create(
        {.num_slots = num_slots, .slot_bytes = 4096, .limit_path = path.c_str()});
  };
  EXPECT_TRUE(create(256).ok());
  EXPECT_EQ(create(257).status(),
            absl::ResourceExhaustedError("257 slots of 4096 bytes: 1052672 bytes are more than the "
                                         "1048576 bytes that the process may have"));
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
