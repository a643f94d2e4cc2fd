// That an index has the same bytes on every machine; what the bytes say is tested in
// tests/index/segment_builder_test.cc.
#include "compute/write_index.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "compute/rotation.h"
#include "tests/cpu/backend_fixture.h"

namespace wavekv::testing {
namespace {

constexpr int64_t kPositionBegin = 5000;

struct Case {
  KvShape shape;
  StatisticsFormat statistics;
  int code_bits;
  float scale;  // of the rows
};

// Random rows of which the first clusters' are all alike, in random clusters.
class Problem {
 public:
  Problem(Random& random, const Case& c, int64_t num_tokens) {
    const KvShape& shape = c.shape;
    std::vector<float> keys = random.Gaussians(num_tokens * shape.head_dim_k, c.scale);
    for (float& x : keys) x += c.scale;
    const int64_t num_alike = std::min<int64_t>(num_tokens, 20);
    for (int64_t i = 1; i < num_alike; ++i) {
      std::copy_n(keys.begin(), shape.head_dim_k, keys.begin() + i * shape.head_dim_k);
    }
    keys_ = Encode(keys, shape.dtype);
    values_ = Encode(random.Gaussians(num_tokens * shape.head_dim_v, c.scale), shape.dtype);
    range_ = {keys_.data(), values_.data(), num_tokens, kPositionBegin, nullptr};

    members_.resize(num_tokens);
    std::iota(members_.begin(), members_.end(), 0);
    std::shuffle(members_.begin() + num_alike, members_.end(), random.engine());
    while (offsets_.back() < num_tokens) {
      const int64_t last = std::min(num_tokens, offsets_.back() + random.Integer(1, 40));
      offsets_.push_back(static_cast<uint32_t>(last));
    }
    const auto num_clusters = static_cast<int64_t>(offsets_.size()) - 1;
    while (super_offsets_.back() < num_clusters) {
      const int64_t last = std::min(num_clusters, super_offsets_.back() + random.Integer(1, 9));
      super_offsets_.push_back(static_cast<uint32_t>(last));
    }
    shape_ = {shape,
              c.statistics,
              c.code_bits,
              num_clusters,
              static_cast<int64_t>(super_offsets_.size()) - 1,
              num_tokens};
  }

  std::vector<std::byte> Run(Backend& backend) const {
    const int64_t num_bytes = ClusterIndexBytes(shape_);
    std::vector<std::byte> memory(num_bytes + 64);  // padding is not written
    void* aligned = memory.data();
    size_t space = memory.size();
    auto* const extent = static_cast<std::byte*>(std::align(64, num_bytes, aligned, space));
    const WriteIndexTask task = {.rows = {&range_, 1},
                                 .offsets = offsets_.data(),
                                 .members = members_.data(),
                                 .super_offsets = super_offsets_.data(),
                                 .out = FormatClusterIndex(extent, shape_, kPositionBegin)};
    EXPECT_TRUE(backend.WriteIndex({&task, 1}).ok());
    return std::vector<std::byte>(extent, extent + num_bytes);
  }

 private:
  std::vector<std::byte> keys_;
  std::vector<std::byte> values_;
  KvRange range_;
  std::vector<uint32_t> offsets_ = {0};
  std::vector<uint32_t> super_offsets_ = {0};
  std::vector<uint32_t> members_;
  ClusterIndexShape shape_;
};

class WriteIndexTest : public BackendFixture {
 protected:
  void ExpectSameBytesOnEachTarget(Random& random, const Case& c, int64_t num_tokens) {
    const Problem problem(random, c, num_tokens);
    std::vector<std::byte> first;
    ForEachTarget([&] {
      const std::vector<std::byte> bytes = problem.Run(backend());
      if (first.empty()) first = bytes;
      ASSERT_EQ(bytes.size(), first.size());
      EXPECT_EQ(std::memcmp(bytes.data(), first.data(), bytes.size()), 0);
    });
  }
};

TEST_F(WriteIndexTest, BytesAreTheSameOnEveryInstructionSet) {
  Random random(41);
  WAVEKV_TRACE_SEED(random);
  for (const DType dtype : kAllDTypes) {
    for (const int dim : kHeadDims) {
      for (const int bits : {1, 2, 4}) {
        SCOPED_TRACE(::testing::Message()
                     << DTypeBytes(dtype) << " bytes, dim " << dim << ", " << bits << " bits");
        const KvShape shape = {dim, kHeadDims[random.Integer(0, 7)], dtype};
        ExpectSameBytesOnEachTarget(random, {shape, StatisticsFormat::kInt4, bits, 1.0f}, 150);
      }
    }
  }
}

TEST_F(WriteIndexTest, BytesAreTheSameForRowsOfAnyMagnitude) {
  Random random(42);
  WAVEKV_TRACE_SEED(random);
  for (const StatisticsFormat statistics :
       {StatisticsFormat::kFloat32, StatisticsFormat::kInt8, StatisticsFormat::kInt4}) {
    for (const int bits : {1, 2, 4}) {
      // Of the first and the last, squares leave the range of fp32; all rows of no length are zero.
      for (const float scale : {0x1p-50f, 0x1p-10f, 0x1p20f, 0x1p70f, 0.0f}) {
        SCOPED_TRACE(scale);
        const KvShape shape = {80, 64, DType::kFloat32};
        ExpectSameBytesOnEachTarget(random, {shape, statistics, bits, scale}, 100);
      }
    }
  }
}

TEST_F(WriteIndexTest, TheMeansAreRotated) {
  Random random(43);
  WAVEKV_TRACE_SEED(random);
  for (const int dim : kHeadDims) {
    // One cluster of one super-cluster: what it has beyond the segment's mean is nothing.
    const std::vector<float> row = random.Gaussians(dim);
    std::vector<double> rotated(row.begin(), row.end());
    Rotation(dim).Apply(rotated.data());
    const uint32_t offsets[] = {0, 1}, members[] = {0};
    const auto* const bytes = reinterpret_cast<const std::byte*>(row.data());
    const KvRange range = {bytes, bytes, 1, kPositionBegin, nullptr};
    const ClusterIndexShape shape = {
        {dim, dim, DType::kFloat32}, StatisticsFormat::kFloat32, 1, 1, 1, 1};
    std::vector<std::byte> memory(ClusterIndexBytes(shape) + 64);
    void* aligned = memory.data();
    size_t space = memory.size();
    auto* const extent =
        static_cast<std::byte*>(std::align(64, memory.size() - 64, aligned, space));
    const MutableClusterIndex out = FormatClusterIndex(extent, shape, kPositionBegin);
    const WriteIndexTask task = {{&range, 1}, offsets, members, offsets, out};
    ASSERT_TRUE(backend().WriteIndex({&task, 1}).ok());
    for (int j = 0; j < dim; ++j) {
      EXPECT_EQ(out.mean_key[j], static_cast<float>(rotated[j]));
      EXPECT_EQ(out.mean_value[j], static_cast<float>(rotated[j]));
    }
    EXPECT_EQ(out.key_spreads[0], 0.0f);
    EXPECT_EQ(out.positions[0], 0);
  }
}

}  // namespace
}  // namespace wavekv::testing
