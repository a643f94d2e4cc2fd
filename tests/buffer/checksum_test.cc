#include "buffer/checksum.h"

#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

std::vector<std::byte> RandomBytes(int64_t count, testing::Random& random) {
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.Integer(0, 255));
  return bytes;
}

TEST(BlockChecksumTest, IsTheLowHalfOfXxh3) {
  EXPECT_EQ(BlockChecksum({}), 0x38d394c2u);  // the published value of no bytes: 2d06800538d394c2
}

TEST(BlockChecksumTest, EveryFlippedBitShows) {
  testing::Random random(11);
  WAVEKV_TRACE_SEED(random);
  std::vector<std::byte> block = RandomBytes(512, random);
  const uint32_t checksum = BlockChecksum(block);
  for (size_t bit = 0; bit < block.size() * 8; ++bit) {
    const auto mask = static_cast<std::byte>(1 << bit % 8);
    block[bit / 8] ^= mask;
    ASSERT_NE(BlockChecksum(block), checksum) << "bit " << bit;
    block[bit / 8] ^= mask;
  }
}

TEST(BlockChecksumTest, ChecksumsOfARunAreThoseOfItsBlocks) {
  testing::Random random(12);
  WAVEKV_TRACE_SEED(random);
  const std::vector<std::byte> blocks = RandomBytes(5 * 1536, random);
  std::vector<uint32_t> checksums(5);
  BlockChecksums(blocks, 1536, absl::MakeSpan(checksums));
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(checksums[i], BlockChecksum(absl::MakeConstSpan(blocks).subspan(i * 1536, 1536)));
  }
}

}  // namespace
}  // namespace wavekv
