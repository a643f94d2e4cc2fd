#include "storage/tenant_store.h"

#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/storage/token_rows.h"

namespace wavekv {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::Random;
using testing::Token;
using testing::TokenRows;
using testing::Tokens;

using SequencePtr = std::shared_ptr<StoredSequence>;

constexpr int64_t kArenaBytes = 16 << 20;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

class TenantStoreTest : public ::testing::Test {
 protected:
  TenantStoreTest() {
    context_->model = {.num_layers = 2,
                       .num_q_heads = 2,
                       .num_kv_heads = 2,
                       .head_dim_k = 8,
                       .head_dim_v = 16,
                       .kv_dtype = DType::kBFloat16};
    context_->cut_rule = {
        .segment_tokens = 256, .update_tokens = 128, .sink_tokens = 4, .window_tokens = 32};
    context_->arena = *Arena::Create(kArenaBytes);
  }

  std::shared_ptr<TenantStore> MakeTenant(const StoreQuota& quota = {}) {
    return std::make_shared<TenantStore>("tenant", context_, quota);
  }
  static SequencePtr Create(TenantStore& tenant) {
    auto sequence = tenant.CreateSequence();
    EXPECT_TRUE(sequence.ok()) << sequence.status();
    return *sequence;
  }
  // Appends to every layer, as a step does, with what the tenant's quota says.
  absl::Status TryAppend(TenantStore& tenant, const SequencePtr& sequence,
                         const std::vector<Token>& tokens) {
    auto writer = SequenceWriter::Acquire(sequence);
    if (!writer.ok()) return writer.status();
    StoredSequence* const keep[] = {sequence.get()};
    for (int layer = 0; layer < sequence->num_layers(); ++layer) {
      const absl::Status status = tenant.WithEviction(keep, [&] {
        return TokenRows(context_->model)
            .Append(sequence->layer(layer), sequence->account(), tokens);
      });
      if (!status.ok()) return status;
    }
    sequence->Touch();
    return absl::OkStatus();
  }
  void Append(TenantStore& tenant, const SequencePtr& sequence, const std::vector<Token>& tokens) {
    const absl::Status status = TryAppend(tenant, sequence, tokens);
    ASSERT_TRUE(status.ok()) << status;
  }
  void SealAll(const SequencePtr& sequence) {
    Random random(1);
    for (int layer = 0; layer < sequence->num_layers(); ++layer) {
      for (const auto& segment : sequence->layer(layer).Cut(true)) {
        ASSERT_TRUE(TokenRows(context_->model).Seal(*segment, sequence->account(), random).ok());
      }
    }
  }
  void Expect(const SequencePtr& sequence, const std::vector<Token>& tokens) {
    for (int layer = 0; layer < sequence->num_layers(); ++layer) {
      TokenRows(context_->model)
          .ExpectContents(sequence->layer(layer).Snapshot(), context_->cut_rule, tokens);
    }
  }

  const std::shared_ptr<StoreContext> context_ = std::make_shared<StoreContext>();
};

TEST_F(TenantStoreTest, NewSequenceIsEmptyAndHasAnIdOfItsOwn) {
  const auto tenant = MakeTenant();
  const SequencePtr a = Create(*tenant);
  const SequencePtr b = Create(*tenant);
  EXPECT_EQ(a->length(), 0);
  EXPECT_NE(a->id(), 0u);
  EXPECT_NE(a->id(), b->id());
  EXPECT_EQ(tenant->num_sequences(), 2);
  EXPECT_EQ(a->tenant(), tenant);
}

TEST_F(TenantStoreTest, LengthIsThatOfTheShortestLayer) {
  const auto tenant = MakeTenant();
  const SequencePtr a = Create(*tenant);
  const TokenRows rows(context_->model);
  ASSERT_TRUE(rows.Append(a->layer(0), a->account(), Tokens(0, 10)).ok());
  EXPECT_EQ(a->length(), 0);
  ASSERT_TRUE(rows.Append(a->layer(1), a->account(), Tokens(0, 7)).ok());
  EXPECT_EQ(a->length(), 7);
}

TEST_F(TenantStoreTest, ForkHasTheParentsTokensAndThenItsOwn) {
  const auto tenant = MakeTenant();
  const SequencePtr parent = Create(*tenant);
  Append(*tenant, parent, Tokens(0, 500));
  SealAll(parent);
  for (const std::optional<int64_t> prefix :
       {std::optional<int64_t>(), std::optional<int64_t>(0), std::optional<int64_t>(3),
        std::optional<int64_t>(200), std::optional<int64_t>(500)}) {
    const int64_t length = prefix.value_or(500);
    SCOPED_TRACE(length);
    auto child = tenant->Fork(parent, prefix);
    ASSERT_TRUE(child.ok()) << child.status();
    Expect(*child, Tokens(0, length));
    Append(*tenant, *child, Tokens(5000, 9));
    std::vector<Token> expected = Tokens(0, length);
    for (const Token token : Tokens(5000, 9)) expected.push_back(token);
    Expect(*child, expected);
    Expect(parent, Tokens(0, 500));
  }
}

TEST_F(TenantStoreTest, ForkBeyondTheLengthIsOutOfRangeWithBothNumbers) {
  const auto tenant = MakeTenant();
  const SequencePtr parent = Create(*tenant);
  Append(*tenant, parent, Tokens(0, 10));
  for (const int64_t prefix : {int64_t{11}, int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    const auto child = tenant->Fork(parent, prefix);
    EXPECT_EQ(child.status().code(), absl::StatusCode::kOutOfRange);
    EXPECT_THAT(Message(child.status()), AllOf(HasSubstr("prefix_tokens"), HasSubstr("[0, 10]"),
                                               HasSubstr("got " + std::to_string(prefix))));
  }
  EXPECT_EQ(tenant->num_sequences(), 1);
}

TEST_F(TenantStoreTest, ForkOfAllTokensNeedsLayersOfOneLength) {
  const auto tenant = MakeTenant();
  const SequencePtr parent = Create(*tenant);
  Append(*tenant, parent, Tokens(0, 10));
  ASSERT_TRUE(
      TokenRows(context_->model).Append(parent->layer(0), parent->account(), Tokens(10, 1)).ok());
  const auto child = tenant->Fork(parent, std::nullopt);
  EXPECT_EQ(child.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(child.status()), AllOf(HasSubstr("layer 0"), HasSubstr("11")));
  const auto prefix = tenant->Fork(parent, 10);
  ASSERT_TRUE(prefix.ok()) << prefix.status();
  Expect(*prefix, Tokens(0, 10));
}

TEST_F(TenantStoreTest, TruncateKeepsThePrefixInEveryLayer) {
  const auto tenant = MakeTenant();
  const SequencePtr sequence = Create(*tenant);
  Append(*tenant, sequence, Tokens(0, 500));
  SealAll(sequence);
  for (const int64_t length : {500, 499, 300, 200, 5, 4, 3, 0}) {
    SCOPED_TRACE(length);
    const absl::Status status = tenant->Truncate(sequence, length);
    ASSERT_TRUE(status.ok()) << status;
    Expect(sequence, Tokens(0, length));
  }
  EXPECT_EQ(tenant->account().used_bytes(), 0);
}

TEST_F(TenantStoreTest, TruncateLevelsLayersOfDifferentLength) {
  const auto tenant = MakeTenant();
  const SequencePtr sequence = Create(*tenant);
  Append(*tenant, sequence, Tokens(0, 90));
  ASSERT_TRUE(TokenRows(context_->model)
                  .Append(sequence->layer(1), sequence->account(), Tokens(90, 5))
                  .ok());
  ASSERT_TRUE(tenant->Truncate(sequence, 90).ok());
  Expect(sequence, Tokens(0, 90));
}

TEST_F(TenantStoreTest, TruncateBeyondTheLengthIsOutOfRangeAndChangesNothing) {
  const auto tenant = MakeTenant();
  const SequencePtr sequence = Create(*tenant);
  Append(*tenant, sequence, Tokens(0, 20));
  for (const int64_t length : {int64_t{21}, int64_t{-1}}) {
    const absl::Status status = tenant->Truncate(sequence, length);
    EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
    EXPECT_THAT(Message(status), AllOf(HasSubstr("new_length"), HasSubstr("[0, 20]"),
                                       HasSubstr("got " + std::to_string(length))));
  }
  Expect(sequence, Tokens(0, 20));
}

TEST_F(TenantStoreTest, TruncateThatDoesNotFitChangesNothing) {
  const auto tenant = MakeTenant();
  const SequencePtr sequence = Create(*tenant);
  Append(*tenant, sequence, Tokens(0, 500));
  SealAll(sequence);
  const int64_t used = tenant->account().used_bytes();
  ASSERT_TRUE(tenant->SetQuota({.host_bytes = used}).ok());
  const absl::Status status = tenant->Truncate(sequence, 250);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(tenant->account().used_bytes(), used);
  Expect(sequence, Tokens(0, 500));
  EXPECT_TRUE(tenant->Truncate(sequence, 0).ok()) << "dropping whole segments needs no memory";
}

TEST_F(TenantStoreTest, RemovedSequenceIsGoneForEveryCall) {
  const auto tenant = MakeTenant();
  const SequencePtr sequence = Create(*tenant);
  Append(*tenant, sequence, Tokens(0, 50));
  ASSERT_TRUE(tenant->Remove(sequence).ok());
  EXPECT_TRUE(sequence->removed());
  EXPECT_EQ(tenant->num_sequences(), 0);
  EXPECT_EQ(tenant->account().used_bytes(), 0);
  for (const absl::Status& status :
       {tenant->Remove(sequence), tenant->Truncate(sequence, 0),
        tenant->Fork(sequence, std::nullopt).status(), tenant->Fork(sequence, 0).status(),
        SequenceWriter::Acquire(sequence).status()}) {
    EXPECT_EQ(status, SequenceNotFound());
  }
}

TEST_F(TenantStoreTest, ForeignStaleAndNullHandlesAllGetTheSameAnswer) {
  const auto alice = MakeTenant();
  const auto bob = MakeTenant();
  const SequencePtr hers = Create(*alice);
  Append(*alice, hers, Tokens(0, 50));
  for (const SequencePtr& handle : {hers, SequencePtr()}) {
    EXPECT_EQ(bob->Remove(handle), SequenceNotFound());
    EXPECT_EQ(bob->Truncate(handle, 0), SequenceNotFound());
    EXPECT_EQ(bob->Fork(handle, std::nullopt).status(), SequenceNotFound());
  }
  Expect(hers, Tokens(0, 50));
}

TEST_F(TenantStoreTest, RemovalWipesTheBytesBeforeTheirNextUse) {
  const auto tenant = MakeTenant();
  const SequencePtr sequence = Create(*tenant);
  Append(*tenant, sequence, Tokens(0, 3000));
  SealAll(sequence);
  ASSERT_TRUE(tenant->Remove(sequence).ok());
  ASSERT_EQ(context_->arena->used_bytes(), 0);
  const std::byte* const all = context_->arena->Allocate(kArenaBytes);
  ASSERT_NE(all, nullptr);
  const std::vector<std::byte> zeros(kArenaBytes);
  EXPECT_EQ(std::memcmp(all, zeros.data(), kArenaBytes), 0);
}

TEST_F(TenantStoreTest, RemovedParentLeavesItsForksReadable) {
  const auto tenant = MakeTenant();
  const SequencePtr parent = Create(*tenant);
  Append(*tenant, parent, Tokens(0, 500));
  SealAll(parent);
  const auto child = tenant->Fork(parent, 450);
  ASSERT_TRUE(child.ok());
  ASSERT_TRUE(tenant->Remove(parent).ok());
  Expect(*child, Tokens(0, 450));
  ASSERT_TRUE(tenant->Remove(*child).ok());
  EXPECT_EQ(context_->arena->used_bytes(), 0);
}

TEST_F(TenantStoreTest, SecondWriterIsAborted) {
  const auto tenant = MakeTenant();
  const SequencePtr sequence = Create(*tenant);
  Append(*tenant, sequence, Tokens(0, 50));
  {
    const auto writer = SequenceWriter::Acquire(sequence);
    ASSERT_TRUE(writer.ok());
    for (const absl::Status& status : {SequenceWriter::Acquire(sequence).status(),
                                       tenant->Truncate(sequence, 10), tenant->Remove(sequence)}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
      EXPECT_THAT(Message(status), HasSubstr("one writer"));
    }
    EXPECT_TRUE(tenant->Fork(sequence, 10).ok()) << "a fork only reads";
  }
  EXPECT_TRUE(SequenceWriter::Acquire(sequence).ok());
  Expect(sequence, Tokens(0, 50));
}

TEST_F(TenantStoreTest, MaxSequencesIsRefusedWithRequestedAvailableAndQuota) {
  const auto tenant = MakeTenant({.max_sequences = 2});
  const SequencePtr a = Create(*tenant);
  const SequencePtr b = Create(*tenant);
  for (const absl::Status& status :
       {tenant->CreateSequence().status(), tenant->Fork(a, std::nullopt).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(Message(status), AllOf(HasSubstr("sequences"), HasSubstr("requested 1"),
                                       HasSubstr("available 0"), HasSubstr("quota 2")));
  }
  ASSERT_TRUE(tenant->Remove(b).ok());
  EXPECT_TRUE(tenant->CreateSequence().ok());
}

TEST_F(TenantStoreTest, EvictOwnRemovesTheLeastRecentlyUsedFirst) {
  const auto tenant = MakeTenant({.max_sequences = 3, .evict_own = true});
  const SequencePtr a = Create(*tenant);
  const SequencePtr b = Create(*tenant);
  const SequencePtr c = Create(*tenant);
  a->Touch();  // b is the oldest now, then c
  const SequencePtr d = Create(*tenant);
  EXPECT_TRUE(b->removed());
  EXPECT_FALSE(a->removed() || c->removed() || d->removed());
  const SequencePtr e = Create(*tenant);
  EXPECT_TRUE(c->removed());
  EXPECT_FALSE(a->removed() || d->removed() || e->removed());
  EXPECT_EQ(tenant->evicted_sequences_total(), 2);
  EXPECT_EQ(tenant->num_sequences(), 3);
}

TEST_F(TenantStoreTest, EvictOwnMakesRoomForBytesButNeverFromTheCallsOwnSequences) {
  const auto tenant = MakeTenant({.evict_own = true});
  const SequencePtr a = Create(*tenant);
  const SequencePtr b = Create(*tenant);
  Append(*tenant, a, Tokens(0, 200));
  Append(*tenant, b, Tokens(1000, 200));
  ASSERT_TRUE(
      tenant->SetQuota({.host_bytes = tenant->account().used_bytes(), .evict_own = true}).ok());
  Append(*tenant, a, Tokens(200, 100));  // a is older, but it is the one that grows
  EXPECT_TRUE(b->removed());
  Expect(a, Tokens(0, 300));
  EXPECT_EQ(tenant->evicted_sequences_total(), 1);
}

TEST_F(TenantStoreTest, EvictOwnNeverTouchesAnotherTenant) {
  const auto alice = MakeTenant();
  const auto bob = MakeTenant({.host_bytes = 1 << 16, .evict_own = true});
  const SequencePtr hers = Create(*alice);
  Append(*alice, hers, Tokens(0, 100));
  const SequencePtr his = Create(*bob);
  EXPECT_EQ(TryAppend(*bob, his, Tokens(0, 5000)).code(), absl::StatusCode::kResourceExhausted);
  Expect(hers, Tokens(0, 100));
  EXPECT_EQ(alice->evicted_sequences_total(), 0);
}

TEST_F(TenantStoreTest, EvictOwnPassesOverASequenceThatIsBeingWritten) {
  const auto tenant = MakeTenant({.max_sequences = 2, .evict_own = true});
  const SequencePtr oldest = Create(*tenant);
  const SequencePtr other = Create(*tenant);
  const auto writer = SequenceWriter::Acquire(oldest);
  ASSERT_TRUE(writer.ok());
  const SequencePtr fresh = Create(*tenant);
  EXPECT_FALSE(oldest->removed());
  EXPECT_TRUE(other->removed());
}

TEST_F(TenantStoreTest, RejectingTenantEvictsNothing) {
  const auto tenant = MakeTenant({.host_bytes = 1 << 17});
  const SequencePtr a = Create(*tenant);
  const SequencePtr b = Create(*tenant);
  Append(*tenant, a, Tokens(0, 100));
  EXPECT_EQ(TryAppend(*tenant, b, Tokens(0, 5000)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(a->removed());
  Expect(a, Tokens(0, 100));
  EXPECT_EQ(tenant->evicted_sequences_total(), 0);
}

TEST_F(TenantStoreTest, ClosedTenantIsEmptyAndAnswersNotFound) {
  const auto tenant = MakeTenant();
  const SequencePtr sequence = Create(*tenant);
  Append(*tenant, sequence, Tokens(0, 100));
  tenant->Close();
  EXPECT_TRUE(tenant->closed());
  EXPECT_EQ(tenant->num_sequences(), 0);
  EXPECT_EQ(context_->arena->used_bytes(), 0);
  EXPECT_TRUE(sequence->removed());
  EXPECT_EQ(tenant->CreateSequence().status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(tenant->Fork(sequence, std::nullopt).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(tenant->Truncate(sequence, 0).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(tenant->Remove(sequence).code(), absl::StatusCode::kNotFound);
  tenant->Close();
}

TEST_F(TenantStoreTest, AQuotaThatComesAfterCloseIsNotFound) {
  const auto tenant = MakeTenant();
  tenant->Close();
  EXPECT_EQ(tenant->SetQuota({.rows = {.reserved_cache_bytes = 4096}}).code(),
            absl::StatusCode::kNotFound);
}

TEST_F(TenantStoreTest, CloseWaitsForTheWriter) {
  const auto tenant = MakeTenant();
  const SequencePtr sequence = Create(*tenant);
  Append(*tenant, sequence, Tokens(0, 100));
  std::thread closing;
  {
    const auto writer = SequenceWriter::Acquire(sequence);
    ASSERT_TRUE(writer.ok());
    closing = std::thread([&tenant] { tenant->Close(); });
    while (!sequence->removed()) std::this_thread::yield();
    // Its tokens stay: the right to write is still ours.
    Expect(sequence, Tokens(0, 100));
    // Whoever comes now is not told to try again.
    EXPECT_EQ(SequenceWriter::Acquire(sequence).status(), SequenceNotFound());
  }
  closing.join();
  EXPECT_TRUE(sequence->removed());
  EXPECT_EQ(context_->arena->used_bytes(), 0);
}

TEST_F(TenantStoreTest, SequenceOutlivesItsTenantAsAStaleHandle) {
  auto tenant = MakeTenant();
  const SequencePtr sequence = Create(*tenant);
  tenant->Close();
  tenant.reset();
  EXPECT_EQ(sequence->tenant(), nullptr);
  EXPECT_EQ(MakeTenant()->Remove(sequence), SequenceNotFound());
}

TEST_F(TenantStoreTest, OneOfManyThreadsWritesAtATime) {
  const auto tenant = MakeTenant();
  const SequencePtr sequence = Create(*tenant);
  std::atomic<int> writers{0};
  std::atomic<int64_t> appended{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 300; ++i) {
        const auto writer = SequenceWriter::Acquire(sequence);
        if (!writer.ok()) {
          EXPECT_EQ(writer.status().code(), absl::StatusCode::kAborted);
          continue;
        }
        EXPECT_EQ(writers.fetch_add(1), 0);
        const auto next = static_cast<Token>(appended.fetch_add(1));
        for (int layer = 0; layer < 2; ++layer) {
          EXPECT_TRUE(TokenRows(context_->model)
                          .Append(sequence->layer(layer), sequence->account(), {next})
                          .ok());
        }
        writers.fetch_sub(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(appended.load(), 0);
  Expect(sequence, Tokens(0, appended.load()));
}

TEST_F(TenantStoreTest, ForksTakenWhileTheParentIsRolledBackAreWholePrefixes) {
  const auto tenant = MakeTenant();
  const SequencePtr parent = Create(*tenant);
  Append(*tenant, parent, Tokens(0, 400));
  SealAll(parent);
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      Random random(t + 1);
      while (!done.load()) {
        const int64_t prefix = random.Integer(0, 400);
        const auto child = tenant->Fork(parent, prefix);
        if (!child.ok()) {
          EXPECT_EQ(child.status().code(), absl::StatusCode::kOutOfRange) << child.status();
          continue;
        }
        Expect(*child, Tokens(0, prefix));
        EXPECT_TRUE(tenant->Remove(*child).ok());
      }
    });
  }
  Random random(9);
  for (int round = 0; round < 150; ++round) {
    const int64_t length = random.Integer(0, 399);
    ASSERT_TRUE(tenant->Truncate(parent, length).ok());
    Append(*tenant, parent, Tokens(static_cast<Token>(length), 400 - length));
    SealAll(parent);
  }
  done.store(true);
  for (std::thread& thread : threads) thread.join();
  Expect(parent, Tokens(0, 400));
  EXPECT_EQ(tenant->num_sequences(), 1);
}

TEST_F(TenantStoreTest, EvictionsByManyThreadsKeepTheQuotaAndTheAccounts) {
  const auto tenant = MakeTenant({.host_bytes = 1 << 20, .max_sequences = 12, .evict_own = true});
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      Random random(t + 1);
      for (int i = 0; i < 80; ++i) {
        const auto sequence = tenant->CreateSequence();
        if (!sequence.ok()) {
          EXPECT_EQ(sequence.status().code(), absl::StatusCode::kResourceExhausted);
          continue;
        }
        const int64_t count = random.Integer(1, 300);
        // Another thread may evict it at any moment, or hold all others.
        const absl::Status status = TryAppend(*tenant, *sequence, Tokens(i * 1000, count));
        EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kNotFound ||
                    status.code() == absl::StatusCode::kResourceExhausted)
            << status;
        EXPECT_LE(tenant->account().used_bytes(), 1 << 20);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(tenant->num_sequences(), 12);
  EXPECT_GT(tenant->evicted_sequences_total(), 0);
  EXPECT_EQ(tenant->account().used_bytes(), context_->arena->used_bytes());
  tenant->Close();
  EXPECT_EQ(context_->arena->used_bytes(), 0);
}

}  // namespace
}  // namespace wavekv
