#include "buffer/block_fetch.h"

#include <algorithm>
#include <cstring>

#include "buffer/row_tiers.h"

namespace wavekv {
namespace {

// Blocks to wait for at once, so that the caller computes on more than a few.
constexpr int64_t kWaitBlocks = 32;

}  // namespace

BlockFetch::BlockFetch(RowTiers& tiers, absl::Span<std::byte> memory,
                       std::unique_ptr<BlockReader> reader)
    : tiers_(tiers), memory_(memory), reader_(std::move(reader)) {
  const size_t capacity = memory.size() / tiers.shape().bytes;
  held_.resize(capacity);
  for (size_t i = capacity; i > 0; --i) free_.push_back(static_cast<Buffer>(i - 1));
  by_block_.reserve(2 * capacity);
  waiters_.reserve(capacity);
  to_submit_.reserve(capacity);
  arrivals_.reserve(capacity);
  completions_.resize(capacity);
  missed_.reserve(capacity);
}

void BlockFetch::Begin(uint32_t step) {
  step_ = step;
  failure_ = absl::OkStatus();
  num_hits_ = num_misses_ = bytes_read_ = 0;
}

void BlockFetch::AddList(size_t number) {
  num_lists_ = number + 1;
  if (lists_.size() < num_lists_) lists_.resize(num_lists_);
}

const std::byte* BlockFetch::Find(const TieredRows& rows, int64_t block, size_t list) {
  BlockCache& cache = *tiers_.cache_;
  List& looked_up = lists_[list];
  const BlockTable& table = rows.table();
  const uint32_t slot = cache.Pin(table, block, step_);
  looked_up.tenant = table.tenant();
  if (slot == BlockTable::kNoSlot) {
    ++looked_up.num_misses;
    return nullptr;
  }
  looked_up.pinned.push_back(slot);
  return cache.data(slot);
}

void BlockFetch::PrefetchUse(const TieredRows& rows, int64_t block) const {
  tiers_.cache_->PrefetchUse(rows.table(), block);
}

int64_t BlockFetch::num_hits() const {
  int64_t hits = num_hits_;
  for (size_t i = 0; i < num_lists_; ++i) hits += static_cast<int64_t>(lists_[i].pinned.size());
  return hits;
}

int64_t BlockFetch::num_misses() const {
  int64_t misses = num_misses_;
  for (size_t i = 0; i < num_lists_; ++i) misses += lists_[i].num_misses;
  return misses;
}

BlockFetch::Requested BlockFetch::Request(const TieredRows& rows, int64_t block, uint32_t waiter) {
  const auto known = by_block_.find({&rows, block});
  if (known != by_block_.end()) {
    Held& held = held_[known->second];
    if (held.state != State::kComing) {
      Tell(known->second, waiter);
      return Requested::kComes;
    }
    int32_t node = first_free_waiter_;
    if (node == kNone) {
      node = static_cast<int32_t>(waiters_.size());
      waiters_.emplace_back();
    } else {
      first_free_waiter_ = waiters_[node].next;
    }
    waiters_[node] = {waiter, held.first_waiter};
    held.first_waiter = node;
    return Requested::kComes;
  }
  if (free_.empty()) Recycle();
  if (free_.empty()) return Requested::kNoRoom;
  const Buffer buffer = free_.back();
  free_.pop_back();
  held_[buffer] = {State::kComing, &rows, block, 0, kNone};
  by_block_.emplace(std::pair(&rows, block), buffer);
  to_submit_.push_back(rows.Read(block, memory(buffer), buffer));
  tiers_.reads_pending_.fetch_add(1, std::memory_order_relaxed);
  return Request(rows, block, waiter);
}

void BlockFetch::Start() {
  if (to_submit_.empty()) return;
  const absl::Status status = reader_->Submit(to_submit_);
  for (const BlockRead& read : to_submit_) {
    if (!status.ok()) Settle(static_cast<Buffer>(read.tag), status);
  }
  to_submit_.clear();
}

absl::Span<const BlockFetch::Arrival> BlockFetch::Wait(BlockReader::TimePoint deadline) {
  if (arrivals_returned_) arrivals_.clear();
  arrivals_returned_ = false;
  Start();
  do {
    const int64_t pending = reader_->num_pending();
    const int64_t at_least = arrivals_.empty() ? std::min(pending, kWaitBlocks) : 0;
    const int64_t count = reader_->Wait(at_least, absl::MakeSpan(completions_), deadline);
    for (int64_t i = 0; i < count; ++i) {
      Settle(static_cast<Buffer>(completions_[i].tag), completions_[i].status);
    }
  } while (arrivals_.empty() && reader_->num_pending() > 0 &&
           std::chrono::steady_clock::now() < deadline);
  arrivals_returned_ = true;
  return arrivals_;
}

void BlockFetch::Settle(Buffer buffer, const absl::Status& status) {
  Held& held = held_[buffer];
  tiers_.reads_pending_.fetch_sub(1, std::memory_order_relaxed);
  if (status.ok()) {
    held.state = State::kHere;
    bytes_read_ += tiers_.shape().bytes;
    tiers_.blocks_read_.fetch_add(1, std::memory_order_relaxed);
    tiers_.bytes_read_.fetch_add(tiers_.shape().bytes, std::memory_order_relaxed);
  } else {
    held.state = State::kFailed;
    if (failure_.ok()) failure_ = status;
    tiers_.read_failures_.fetch_add(1, std::memory_order_relaxed);
  }
  while (held.first_waiter != kNone) {
    const int32_t node = held.first_waiter;
    held.first_waiter = waiters_[node].next;
    waiters_[node].next = first_free_waiter_;
    first_free_waiter_ = node;
    Tell(buffer, waiters_[node].waiter);
  }
}

void BlockFetch::Tell(Buffer buffer, uint32_t waiter) {
  if (arrivals_returned_) {
    arrivals_.clear();
    arrivals_returned_ = false;
  }
  Held& held = held_[buffer];
  ++held.num_users;
  arrivals_.push_back(
      {waiter, buffer, held.state == State::kHere ? memory(buffer).data() : nullptr});
}

void BlockFetch::Release(Buffer buffer) { --held_[buffer].num_users; }

void BlockFetch::Unpin() {
  for (size_t i = 0; i < num_lists_; ++i) {
    List& list = lists_[i];
    const auto hits = static_cast<int64_t>(list.pinned.size());
    if (hits + list.num_misses == 0) continue;
    tiers_.cache_->Release(list.pinned);
    tiers_.cache_->CountLookups(list.tenant, hits, list.num_misses);
    num_hits_ += hits;
    num_misses_ += list.num_misses;
    list.pinned.clear();
    list.num_misses = 0;
  }
  num_lists_ = 0;
}

void BlockFetch::Recycle() {
  missed_.clear();
  const auto is_done = [](const Held& held) {
    return (held.state == State::kHere || held.state == State::kFailed) && held.num_users == 0;
  };
  for (Buffer buffer = 0; buffer < held_.size(); ++buffer) {
    const Held& held = held_[buffer];
    if (is_done(held) && held.state == State::kHere) {
      missed_.push_back({&held.rows->table(), held.block, memory(buffer).data()});
    }
  }
  tiers_.cache_->Admit(step_, missed_);
  for (Buffer buffer = 0; buffer < held_.size(); ++buffer) {
    Held& held = held_[buffer];
    if (!is_done(held)) continue;
    by_block_.erase({held.rows, held.block});
    std::memset(memory(buffer).data(), 0, memory(buffer).size());
    held = {};
    free_.push_back(buffer);
  }
}

void BlockFetch::End() {
  Unpin();
  Start();
  arrivals_.clear();
  arrivals_returned_ = false;
  waiters_.clear();
  first_free_waiter_ = kNone;
  for (Held& held : held_) {
    held.num_users = 0;
    held.first_waiter = kNone;
  }
}

void BlockFetch::AdmitAll() {
  while (reader_->num_pending() > 0) {
    const int64_t count = reader_->Wait(1, absl::MakeSpan(completions_));
    for (int64_t i = 0; i < count; ++i) {
      Settle(static_cast<Buffer>(completions_[i].tag), completions_[i].status);
    }
  }
  Recycle();
  owners_.clear();
}

absl::Span<std::byte> BlockFetch::memory(Buffer buffer) const {
  const int64_t bytes = tiers_.shape().bytes;
  return memory_.subspan(buffer * bytes, bytes);
}

FetchLease::~FetchLease() {
  if (fetch_ == nullptr) return;
  fetch_->End();
  tiers_->TakeBack(fetch_);
}

}  // namespace wavekv
