// The block cache against a model of lists: who holds which block after a million operations.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "buffer/block_cache.h"
#include "gtest/gtest.h"
#include "tests/buffer/block_cache_step.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

using testing::BytesOf;
using testing::Random;
using TenantId = BlockCache::TenantId;

constexpr int64_t kSlots = 64;
constexpr int64_t kBlocks = 60;  // of a table

// With LRU. Hit ratios are those that the cache states.
class Model {
 public:
  struct Entry {
    const BlockTable* table;
    int64_t block;
    uint32_t stamp;
    uint32_t seen;
    int pins = 0;
  };
  struct Tenant {
    CacheShare share;
    std::vector<Entry> entries;          // the first goes first
    std::optional<uint32_t> stuck_step;  // that had used all of them when a slot was wanted
  };

  explicit Model(const BlockCache& cache) : cache_(cache) {}

  std::map<TenantId, Tenant>& tenants() { return tenants_; }
  int64_t num_free() const {
    int64_t free = kSlots;
    for (const auto& [id, tenant] : tenants_) free -= static_cast<int64_t>(tenant.entries.size());
    return free;
  }
  int64_t floors() const {
    int64_t floors = 0;
    for (const auto& [id, tenant] : tenants_) floors += tenant.share.floor_slots;
    return floors;
  }
  Entry* Find(const BlockTable& table, int64_t block) {
    for (Entry& entry : tenants_[table.tenant()].entries) {
      if (entry.table == &table && entry.block == block) return &entry;
    }
    return nullptr;
  }

  void Admit(uint32_t step, const std::vector<BlockCache::Missed>& missed) {
    cannot_pay_.clear();
    for (const BlockCache::Missed& miss : missed) {
      if (Find(*miss.table, miss.block) != nullptr) continue;
      Tenant& owner = tenants_[miss.table->tenant()];
      if (MakeRoom(miss.table->tenant(), step)) {
        owner.entries.push_back({miss.table, miss.block, step, step});
      }
    }
  }

  void SetShare(TenantId id, const CacheShare& share) {
    Tenant& owner = tenants_[id];
    owner.share = share;
    while (share.ceiling_slots > 0 &&
           static_cast<int64_t>(owner.entries.size()) > share.ceiling_slots) {
      if (!Evict(owner, std::nullopt)) return;
    }
  }

  void Drop(const BlockTable& table) {
    std::vector<Entry>& entries = tenants_[table.tenant()].entries;
    entries.erase(std::remove_if(entries.begin(), entries.end(),
                                 [&](const Entry& entry) { return entry.table == &table; }),
                  entries.end());
  }

 private:
  bool MakeRoom(TenantId id, uint32_t step) {
    Tenant& owner = tenants_[id];
    const int64_t ceiling = owner.share.ceiling_slots;
    if (ceiling > 0 && static_cast<int64_t>(owner.entries.size()) >= ceiling) {
      if (owner.stuck_step == step || cannot_pay_.count(id) > 0) return false;
      while (static_cast<int64_t>(owner.entries.size()) >= ceiling) {
        if (Evict(owner, step)) continue;
        cannot_pay_.insert(id);
        return false;
      }
      return true;
    }
    while (num_free() == 0) {
      std::optional<TenantId> payer;
      double most = 0.0;
      for (auto& [other_id, other] : tenants_) {
        const auto used = static_cast<int64_t>(other.entries.size()) + (other_id == id ? 1 : 0);
        const auto beyond = static_cast<double>(used - other.share.floor_slots);
        if (other.entries.empty() || (other_id != id && beyond <= 0.0)) continue;
        if (other.stuck_step == step || cannot_pay_.count(other_id) > 0) continue;
        const double ratio = std::max(0.05, cache_.stats(other_id).recent_hit_ratio);
        const double excess = beyond * (1.0 / (other.share.weight * ratio));  // rounded alike
        if (payer.has_value() && excess <= most) continue;
        payer = other_id;
        most = excess;
      }
      if (!payer.has_value()) return false;
      if (!Evict(tenants_[*payer], step)) cannot_pay_.insert(*payer);
    }
    return true;
  }

  bool Evict(Tenant& owner, std::optional<uint32_t> step) {
    std::vector<Entry>& entries = owner.entries;
    size_t refused = 0;
    while (refused < entries.size()) {
      const Entry first = entries.front();
      entries.erase(entries.begin());
      if (first.pins > 0 || first.stamp == step) {
        ++refused;
        entries.push_back(first);
      } else if (first.stamp != first.seen) {
        refused = 0;
        entries.push_back(first);
        entries.back().seen = first.stamp;
      } else {
        return true;
      }
    }
    if (std::all_of(entries.begin(), entries.end(),
                    [&](const Entry& entry) { return entry.stamp == step; })) {
      owner.stuck_step = step;
    }
    return false;
  }

  const BlockCache& cache_;
  std::map<TenantId, Tenant> tenants_;
  std::set<TenantId> cannot_pay_;  // in this admission
};

// Steps of several sequences whose layers alternate, tenants that come, go and change, and tables
// that end: every look-up finds what the model holds.
class World {
 public:
  explicit World(uint64_t seed) : random_(seed), cache_(testing::Cache(kSlots)), model_(*cache_) {}

  void Run(int64_t num_operations) {
    WAVEKV_TRACE_SEED(random_);
    while (num_operations_ < num_operations && !::testing::Test::HasFailure()) {
      const int64_t dice = random_.Integer(0, 999);
      if (tables_.empty() || dice < 4) {
        AddTenantOrTable();
      } else if (dice < 8) {
        SetShare();
      } else if (dice < 11) {
        DropTable(dice == 8);
      } else if (dice < 700) {
        LookUp();
      } else {
        EndLayer(static_cast<int>(random_.Integer(0, kSequences - 1)));
      }
      Check();
    }
    for (int s = 0; s < kSequences; ++s) EndLayer(s);
    for (const auto& table : tables_) cache_->Drop(*table);
    EXPECT_EQ(cache_->num_free(), kSlots);
    EXPECT_EQ(cache_->num_pinned(), 0);
  }

 private:
  static constexpr int kSequences = 4;

  struct Sequence {
    uint32_t step = 0;
    std::vector<uint32_t> pinned;
    std::vector<std::pair<const BlockTable*, int64_t>> pinned_blocks;
    std::vector<BlockCache::Missed> missed;
    std::vector<std::vector<std::byte>> read;
  };

  CacheShare AnyShare() {
    CacheShare share;
    if (random_.Integer(0, 1) == 0) share.floor_slots = random_.Integer(0, 24);
    if (random_.Integer(0, 2) == 0) {
      share.ceiling_slots = share.floor_slots + random_.Integer(-2, 30);
    }
    share.weight = static_cast<double>(random_.Integer(1, 4));
    return share;
  }
  absl::StatusCode WantedCode(const CacheShare& share, int64_t other_floors) {
    if (share.ceiling_slots < 0 ||
        (share.ceiling_slots > 0 && share.ceiling_slots < share.floor_slots)) {
      return absl::StatusCode::kInvalidArgument;
    }
    return share.floor_slots + other_floors > kSlots ? absl::StatusCode::kResourceExhausted
                                                     : absl::StatusCode::kOk;
  }

  void AddTenantOrTable() {
    ++num_operations_;
    if (!model_.tenants().empty() && random_.Integer(0, 1) == 0) {
      if (tables_.size() < 16) NewTable(AnyTenant());
      return;
    }
    if (model_.tenants().size() == 8) return;
    const CacheShare share = AnyShare();
    const auto id = cache_->AddTenant(share);
    ASSERT_EQ(id.status().code(), WantedCode(share, model_.floors())) << id.status();
    if (!id.ok()) return;
    ASSERT_EQ(model_.tenants().count(*id), 0u);
    model_.tenants()[*id].share = share;
    NewTable(*id);
  }
  void NewTable(TenantId id) {
    tables_.push_back(std::make_unique<BlockTable>(kBlocks, next_key_, id));
    next_key_ += kBlocks;
  }
  TenantId AnyTenant() {
    auto at = model_.tenants().begin();
    std::advance(at, random_.Integer(0, static_cast<int64_t>(model_.tenants().size()) - 1));
    return at->first;
  }

  void SetShare() {
    ++num_operations_;
    const TenantId id = AnyTenant();
    const CacheShare share = AnyShare();
    const absl::Status status = cache_->SetShare(id, share);
    ASSERT_EQ(status.code(),
              WantedCode(share, model_.floors() - model_.tenants()[id].share.floor_slots))
        << status;
    if (status.ok()) model_.SetShare(id, share);
  }

  void DropTable(bool remove_tenant) {
    ++num_operations_;
    // No step may use it.
    for (int s = 0; s < kSequences; ++s) EndLayer(s);
    const auto at = tables_.begin() + random_.Integer(0, static_cast<int64_t>(tables_.size()) - 1);
    const TenantId id = (*at)->tenant();
    const auto drop = [&](const std::unique_ptr<BlockTable>& table) {
      cache_->Drop(*table);
      model_.Drop(*table);
    };
    if (!remove_tenant) {
      drop(*at);
      tables_.erase(at);
      return;
    }
    for (const auto& table : tables_) {
      if (table->tenant() == id) drop(table);
    }
    tables_.erase(std::remove_if(tables_.begin(), tables_.end(),
                                 [&](const auto& table) { return table->tenant() == id; }),
                  tables_.end());
    cache_->RemoveTenant(id);
    model_.tenants().erase(id);
  }

  void LookUp() {
    Sequence& sequence = sequences_[random_.Integer(0, kSequences - 1)];
    BlockTable& table = *tables_[random_.Integer(0, static_cast<int64_t>(tables_.size()) - 1)];
    int64_t hits = 0, misses = 0;
    for (int64_t n = random_.Integer(1, 4); n > 0; --n) {
      ++num_operations_;
      const int64_t block =
          std::min(random_.Integer(0, kBlocks - 1), random_.Integer(0, kBlocks - 1));
      const uint32_t slot = cache_->Pin(table, block, sequence.step);
      Model::Entry* const entry = model_.Find(table, block);
      ASSERT_EQ(slot != BlockCache::kNoSlot, entry != nullptr) << "block " << table.key(block);
      if (entry == nullptr) {
        ++misses;
        sequence.missed.push_back({&table, block});
        sequence.read.push_back(BytesOf(table.key(block)));
        continue;
      }
      ++hits;
      entry->stamp = sequence.step;
      ++entry->pins;
      const std::vector<std::byte> want = BytesOf(table.key(block));
      ASSERT_EQ(std::memcmp(cache_->data(slot), want.data(), want.size()), 0);
      sequence.pinned.push_back(slot);
      sequence.pinned_blocks.emplace_back(&table, block);
    }
    cache_->CountLookups(table.tenant(), hits, misses);
  }

  void EndLayer(int s) {
    Sequence& sequence = sequences_[s];
    num_operations_ += 1 + static_cast<int64_t>(sequence.pinned.size());
    const auto release = [&] {
      cache_->Release(sequence.pinned);
      for (const auto& [table, block] : sequence.pinned_blocks) --model_.Find(*table, block)->pins;
    };
    // Some admit while they still hold what they found; some fail, and admit nothing.
    const int64_t dice = random_.Integer(0, 9);
    if (dice > 2) release();
    if (dice > 0) {
      for (size_t i = 0; i < sequence.missed.size(); ++i) {
        sequence.missed[i].data = sequence.read[i].data();
      }
      std::map<TenantId, int64_t> before;
      for (const auto& [id, tenant] : model_.tenants()) {
        before[id] = cache_->stats(id).slots_used;
      }
      cache_->Admit(sequence.step, sequence.missed);
      model_.Admit(sequence.step, sequence.missed);
      for (const auto& [id, tenant] : model_.tenants()) {
        ASSERT_GE(cache_->stats(id).slots_used, std::min(before[id], tenant.share.floor_slots));
      }
    }
    if (dice <= 2) release();
    const bool goes_on = random_.Integer(0, 2) == 0;
    const uint32_t step = goes_on ? sequence.step : ++last_step_;
    sequence = {};
    sequence.step = step;
  }

  void Check() {
    for (const auto& [id, tenant] : model_.tenants()) {
      ASSERT_EQ(cache_->stats(id).slots_used, static_cast<int64_t>(tenant.entries.size()))
          << "tenant " << id << " after " << num_operations_;
    }
    ASSERT_EQ(cache_->num_free(), model_.num_free());
    const bool is_quiet = std::all_of(std::begin(sequences_), std::end(sequences_),
                                      [](const Sequence& s) { return s.pinned.empty(); });
    if (is_quiet) {
      ASSERT_TRUE(cache_->Audit().ok()) << cache_->Audit();
    }
  }

  Random random_;
  const std::unique_ptr<BlockCache> cache_;
  Model model_;
  std::vector<std::unique_ptr<BlockTable>> tables_;
  Sequence sequences_[kSequences];
  uint64_t next_key_ = 0;
  uint32_t last_step_ = 0xffffff00;  // wraps soon
  int64_t num_operations_ = 0;
};

TEST(BlockCacheModelTest, AMillionRandomOperationsLeaveTheBlocksThatTheModelHolds) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr int64_t kOperations = 15000;
#else
  constexpr int64_t kOperations = 150000;
#endif
  for (uint64_t seed = 1; seed <= 8; ++seed) World(seed).Run(kOperations);
}

}  // namespace
}  // namespace wavekv
