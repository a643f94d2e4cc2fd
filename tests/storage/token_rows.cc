#include "tests/storage/token_rows.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "cpu/cpu_backend.h"
#include "gtest/gtest.h"
#include "index/segment_builder.h"
#include "storage/float16.h"
#include "storage/status_macros.h"
#include "wavekv/executor.h"

namespace wavekv::testing {
namespace {

uint64_t Hash(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Random clusters of 1 to 64 tokens that cover all tokens once, as an index would make them.
Clustering RandomClustering(int64_t num_tokens, Random& random) {
  Clustering clustering;
  clustering.members.resize(num_tokens);
  std::iota(clustering.members.begin(), clustering.members.end(), 0);
  std::shuffle(clustering.members.begin(), clustering.members.end(), random.engine());
  clustering.offsets.push_back(0);
  while (clustering.offsets.back() < num_tokens) {
    const int64_t first = clustering.offsets.back();
    const int64_t last = std::min(num_tokens, first + random.Integer(1, 64));
    std::sort(clustering.members.begin() + first, clustering.members.begin() + last);
    clustering.offsets.push_back(static_cast<uint32_t>(last));
  }
  for (int64_t i = 0; i < clustering.num_clusters(); i += 5) {
    clustering.super_offsets.push_back(static_cast<uint32_t>(i));
  }
  clustering.super_offsets.push_back(static_cast<uint32_t>(clustering.num_clusters()));
  return clustering;
}

}  // namespace

std::vector<Token> Tokens(Token first, int64_t count) {
  std::vector<Token> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

std::vector<std::byte> TokenRows::Row(Token token, int kv_head, bool is_value) const {
  const int dim = is_value ? model_.head_dim_v : model_.head_dim_k;
  std::vector<std::byte> row(dim * DTypeBytes(model_.kv_dtype));
  uint64_t bits = 0;
  for (int d = 0; d < dim; ++d) {
    if (d % 8 == 0) {
      bits = Hash((uint64_t{token} << 24) ^ (kv_head * 512 + d / 8 * 2 + (is_value ? 1 : 0) + 1));
    }
    // Eight bits an element: exact in every dtype, and never zero as free memory is.
    StoreElement(row.data(), model_.kv_dtype, d, static_cast<float>(bits & 0xff) - 127.5f);
    bits >>= 8;
  }
  return row;
}

void TokenRows::Write(Token token, const RowChunk& chunk, int64_t row) const {
  for (int head = 0; head < model_.num_kv_heads; ++head) {
    const std::vector<std::byte> key = Row(token, head, false);
    const std::vector<std::byte> value = Row(token, head, true);
    std::memcpy(chunk.keys(head, row), key.data(), key.size());
    std::memcpy(chunk.values(head, row), value.data(), value.size());
  }
}

absl::Status TokenRows::Append(LayerCache& cache, MemoryAccount& account,
                               const std::vector<Token>& tokens) const {
  WAVEKV_ASSIGN_OR_RETURN(PendingAppend append,
                          cache.PrepareAppend(account, static_cast<int64_t>(tokens.size())));
  size_t next = 0;
  for (const RowSlice& slice : append.slices()) {
    for (int64_t i = 0; i < slice.count; ++i) Write(tokens[next++], *slice.chunk, slice.row + i);
  }
  EXPECT_EQ(next, tokens.size());
  cache.Commit(std::move(append));
  return absl::OkStatus();
}

void TokenRows::ExpectRange(const KvRange& range, int kv_head, const std::vector<Token>& tokens,
                            std::vector<int>& times_seen) const {
  const int64_t key_bytes = model_.key_row_bytes();
  const int64_t value_bytes = model_.value_row_bytes();
  for (int64_t i = 0; i < range.num_tokens; ++i) {
    const int64_t position =
        range.position_begin + (range.positions == nullptr ? i : range.positions[i]);
    ASSERT_LT(position, static_cast<int64_t>(tokens.size()));
    ++times_seen[position];
    const std::vector<std::byte> key = Row(tokens[position], kv_head, false);
    const std::vector<std::byte> value = Row(tokens[position], kv_head, true);
    ASSERT_EQ(std::memcmp(range.keys + i * key_bytes, key.data(), key_bytes), 0)
        << "key of position " << position << ", kv head " << kv_head;
    ASSERT_EQ(std::memcmp(range.values + i * value_bytes, value.data(), value_bytes), 0)
        << "value of position " << position << ", kv head " << kv_head;
  }
}

void TokenRows::ExpectContents(const LayerContents& contents, const CutRule& rule,
                               const std::vector<Token>& tokens) const {
  const int64_t length = static_cast<int64_t>(tokens.size());
  ASSERT_EQ(contents.length, length);
  std::vector<Segment::Pin> pins;
  int64_t begin = rule.sink_tokens;
  for (const auto& segment : contents.segments) {
    ASSERT_EQ(segment->begin(), begin);
    ASSERT_GT(segment->num_tokens(), 0);
    ASSERT_EQ(segment->num_tokens() % kChunkTokens, 0);
    begin = segment->end();
    pins.push_back(segment->Read());
  }
  ASSERT_EQ(contents.tail_begin(rule), begin);
  ASSERT_EQ(static_cast<int64_t>(contents.tail.size()),
            (std::max<int64_t>(0, length - begin) + kChunkTokens - 1) / kChunkTokens);

  for (int head = 0; head < model_.num_kv_heads; ++head) {
    std::vector<int> times_seen(tokens.size(), 0);
    const auto expect_chunk = [&](const RowChunk& chunk, int64_t first) {
      ASSERT_EQ(chunk.position_begin(), first);
      const int64_t count = std::min(chunk.capacity(), length - first);
      ExpectRange(chunk.Range(head, count), head, tokens, times_seen);
    };
    if (contents.sinks != nullptr) expect_chunk(*contents.sinks, 0);
    for (size_t i = 0; i < pins.size(); ++i) {
      int64_t first = contents.segments[i]->begin();
      for (const auto& chunk : pins[i].chunks) {
        expect_chunk(*chunk, first);
        first += kChunkTokens;
      }
      if (pins[i].sealed == nullptr) continue;
      const ClusterIndex& index = pins[i].sealed->heads[head].index;
      for (int64_t c = 0; c < index.num_clusters; ++c) {
        ExpectRange(index.cluster_range(c), head, tokens, times_seen);
      }
    }
    for (size_t i = 0; i < contents.tail.size(); ++i) {
      ASSERT_NE(contents.tail[i], nullptr);
      expect_chunk(*contents.tail[i], begin + static_cast<int64_t>(i) * kChunkTokens);
    }
    for (size_t position = 0; position < tokens.size(); ++position) {
      ASSERT_EQ(times_seen[position], 1) << "position " << position << ", kv head " << head;
    }
  }
}

absl::Status TokenRows::Seal(Segment& segment, MemoryAccount& account, Random& random) const {
  const KvShape shape{model_.head_dim_k, model_.head_dim_v, model_.kv_dtype};
  const Segment::Pin pin = segment.Read();
  const auto executor = MakeThreadPool(1);
  const auto backend = MakeCpuBackend(executor.get());
  auto sealed = std::make_shared<SealedSegment>();
  for (int head = 0; head < model_.num_kv_heads; ++head) {
    std::vector<KvRange> rows;
    for (const auto& chunk : pin.chunks) rows.push_back(chunk->Range(head, kChunkTokens));
    const Clustering clustering = RandomClustering(segment.num_tokens(), random);
    const ClusterIndexShape index_shape =
        IndexShape(clustering, shape, StatisticsFormat::kInt4, /*code_bits=*/1);
    WAVEKV_ASSIGN_OR_RETURN(Extent extent, account.Allocate(ClusterIndexBytes(index_shape)));
    const MutableClusterIndex index =
        FormatClusterIndex(extent.data(), index_shape, segment.begin());
    WAVEKV_RETURN_IF_ERROR(WriteClusterIndex(rows, clustering, *backend, index));
    sealed->heads.push_back({std::move(extent), ReadOnly(index)});
  }
  segment.Seal(std::move(sealed));
  return absl::OkStatus();
}

}  // namespace wavekv::testing
