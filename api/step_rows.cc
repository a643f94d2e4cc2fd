#include "api/step_rows.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "buffer/tiered_rows.h"

namespace wavekv {
namespace {

constexpr int64_t kNowhere = std::numeric_limits<int64_t>::max();

}  // namespace

void RowGroup::Begin(BlockFetch* fetch, size_t number, int64_t piece_tokens) {
  fetch_ = fetch;
  number_ = number;
  piece_tokens_ = piece_tokens;
  ranges_.clear();
  pieces_.clear();
  value_rows_.clear();
  runs_.clear();
  lookups_.clear();
  missing_.clear();
  late_values_used_ = late_values_needed_ = 0;
  open_ = {0, 0, 0, kNowhere, 0, 0, 0};
}

void RowGroup::EndPiece() {
  open_.num_ranges = ranges_.size() - open_.first_range;
  pieces_.push_back(open_);
  open_ = {ranges_.size(), 0, 0, kNowhere, 0, 0, 0};
}

void RowGroup::Add(const KvRange& range) {
  ranges_.push_back(range);
  CountRange(range.num_tokens, range.position_begin);
}

void RowGroup::CountRange(int64_t num_tokens, int64_t position_begin) {
  open_.num_tokens += num_tokens;
  open_.position_begin = std::min(open_.position_begin, position_begin);
  if (open_.num_tokens >= piece_tokens_) EndPiece();
}

void RowGroup::Add(const ClusterRun& run) {
  if (run.head->rows != nullptr) return AddTieredRun(run, /*with_values=*/false);
  const ClusterIndex& index = run.head->index;
  KvRange range = index.cluster_range(run.cluster);
  range.keys += run.first * index.key_row_bytes();
  range.values += run.first * index.value_row_bytes();
  range.positions += run.first;
  range.num_tokens = run.num_tokens;
  Add(range);
}

void RowGroup::AddChosen(const SealedHead& head, int64_t cluster, const TokenBits& chosen,
                         int64_t first_bit, int64_t item) {
  const ClusterIndex& index = head.index;
  const KvRange whole = index.cluster_range(cluster);
  const int64_t key_bytes = index.key_row_bytes(), value_bytes = index.value_row_bytes();
  chosen.ForEachWord(first_bit, whole.num_tokens, [&](int64_t first, uint64_t bits) {
    while (bits != 0) {
      const int64_t begin = first + std::countr_zero(bits);
      const int64_t count = std::countr_one(bits >> (begin - first));
      bits &= bits + (uint64_t{1} << (begin - first));  // without the lowest run
      if (head.rows != nullptr) {
        AddTieredRun({&head, cluster, begin, count, item + begin}, /*with_values=*/true);
        continue;
      }
      const std::byte* const values = whole.values + begin * value_bytes;
      for (int64_t i = 0; i < count; ++i) value_rows_.push_back(values + i * value_bytes);
      // In place: a range that is put together elsewhere is waited for where it is copied.
      ranges_.emplace_back(whole.keys + begin * key_bytes, values, count, whole.position_begin,
                           whole.positions + begin);
      CountRange(count, whole.position_begin);
    }
  });
}

void RowGroup::AddTieredRun(const ClusterRun& run, bool with_values) {
  const ClusterIndex& index = run.head->index;
  // An engine has one kind of tiers.
  const auto& rows = static_cast<const TieredRows&>(*run.head->rows);
  const BlockShape& shape = rows.shape();
  const auto run_number = static_cast<uint32_t>(runs_.size());
  const auto first_token = static_cast<uint32_t>(index.offsets[run.cluster] + run.first);
  const auto block_tokens = static_cast<uint32_t>(shape.tokens);
  runs_.push_back({&rows, ranges_.size(), 0, with_values ? value_rows_.size() : kNone, run.item});
  for (int64_t done = 0; done < run.num_tokens;) {
    const uint32_t token = first_token + static_cast<uint32_t>(done);
    const uint32_t block = token / block_tokens, at = token % block_tokens;
    const int64_t count = std::min(run.num_tokens - done, shape.tokens - at);
    lookups_.push_back({block, at, static_cast<uint32_t>(ranges_.size()), run_number,
                        static_cast<uint32_t>(done)});
    ranges_.push_back({nullptr, nullptr, count, index.position_begin, index.positions + token});
    done += count;
  }
  runs_.back().end_range = ranges_.size();
  if (with_values) value_rows_.resize(value_rows_.size() + run.num_tokens);
  CountRange(run.num_tokens, index.position_begin);
}

void RowGroup::End() {
  if (ranges_.size() > open_.first_range || pieces_.empty()) EndPiece();
  LookUp();
}

// All at once, so that what the look-ups touch can be fetched ahead: it lies all over memory.
void RowGroup::LookUp() {
  constexpr size_t kSlotsAhead = 32, kUsesAhead = 16;
  const auto rows_of = [this](size_t i) -> const TieredRows& {
    return *runs_[lookups_[i].run].rows;
  };
  const TieredRows* last_rows = nullptr;
  uint32_t last_block = 0;
  const std::byte* data = nullptr;
  size_t piece = 0;
  for (size_t i = 0; i < lookups_.size(); ++i) {
    if (i + kSlotsAhead < lookups_.size()) {
      BlockFetch::PrefetchSlot(rows_of(i + kSlotsAhead), lookups_[i + kSlotsAhead].block);
    }
    if (fetch_ != nullptr && i + kUsesAhead < lookups_.size()) {
      fetch_->PrefetchUse(rows_of(i + kUsesAhead), lookups_[i + kUsesAhead].block);
    }
    const LookedUp& lookup = lookups_[i];
    const Run& run = runs_[lookup.run];
    if (last_rows != run.rows || last_block != lookup.block) {
      last_rows = run.rows;
      last_block = lookup.block;
      data = fetch_ == nullptr ? nullptr : fetch_->Find(*run.rows, lookup.block, number_);
    }
    const size_t first_value = run.first_value == kNone ? kNone : run.first_value + lookup.first;
    KvRange& range = ranges_[lookup.range];
    const BlockShape& shape = run.rows->shape();
    if (data != nullptr) {
      range.keys = data + shape.key_offset(lookup.at);
      range.values = data + shape.value_offset(lookup.at);
      if (first_value != kNone) ListValues(range.values, range.num_tokens, shape, first_value);
      continue;
    }
    while (lookup.range >= pieces_[piece].first_range + pieces_[piece].num_ranges) {
      pieces_[++piece].first_missing = missing_.size();
    }
    ++pieces_[piece].num_missing;
    ++pieces_[piece].num_coming;
    missing_.push_back({run.rows, lookup.block, lookup.at, piece, lookup.range, first_value,
                        run.first_range, run.end_range, run.item, lookup.first});
    if (first_value != kNone) late_values_needed_ += range.num_tokens * shape.value_row_bytes;
  }
  while (piece + 1 < pieces_.size()) pieces_[++piece].first_missing = missing_.size();
}

void RowGroup::ListValues(const std::byte* values, int64_t count, const BlockShape& shape,
                          size_t first) {
  for (int64_t i = 0; i < count; ++i) value_rows_[first + i] = values + i * shape.value_row_bytes;
}

void RowGroup::Place(const std::byte* block, const Missing& missing) {
  const BlockShape& shape = missing.rows->shape();
  KvRange& range = ranges_[missing.range];
  range.keys = block + shape.key_offset(missing.at);
  range.values = block + shape.value_offset(missing.at);
  if (missing.first_value == kNone) return;
  if (late_values_used_ == 0) late_values_.resize(late_values_needed_);
  const auto bytes = static_cast<size_t>(range.num_tokens * shape.value_row_bytes);
  std::byte* const copy = late_values_.data() + late_values_used_;
  late_values_used_ += bytes;
  std::memcpy(copy, range.values, bytes);
  ListValues(copy, range.num_tokens, shape, missing.first_value);
}

void RowGroup::CompactValues(size_t first, int64_t count) {
  const auto begin = value_rows_.begin() + static_cast<int64_t>(first);
  const auto gaps = std::remove(begin, begin + count, nullptr);
  std::fill(gaps, begin + count, nullptr);
}

void StepRows::Begin(BlockFetch* fetch) {
  fetch_ = fetch;  // the last one may be gone
  Clear();
}

void StepRows::Clear() {
  if (fetch_ != nullptr) fetch_->Unpin();
  first_waiter_ += static_cast<uint32_t>(num_missing_);
  num_groups_ = num_numbered_ = num_missing_ = num_requested_ = requested_group_ = 0;
  pieces_.clear();
}

size_t StepRows::AddGroup(int64_t piece_tokens) {
  if (num_groups_ == groups_.size()) groups_.push_back(std::make_unique<RowGroup>());
  if (fetch_ != nullptr) fetch_->AddList(num_groups_);
  groups_[num_groups_]->Begin(fetch_, num_groups_, piece_tokens);
  return num_groups_++;
}

void StepRows::EndGroups() {
  for (; num_numbered_ < num_groups_; ++num_numbered_) {
    RowGroup& group = *groups_[num_numbered_];
    group.first_piece_ = pieces_.size();
    group.first_waiter_ = num_missing_;
    num_missing_ += group.missing_.size();
    for (size_t i = 0; i < group.pieces_.size(); ++i) pieces_.push_back({&group, i});
  }
}

RowGroup::Missing* StepRows::MissingOf(uint32_t waiter, RowGroup** group) {
  const uint32_t number = waiter - first_waiter_;  // what was cleared wraps around
  if (number >= num_missing_) return nullptr;
  const auto after = std::upper_bound(
      groups_.begin(), groups_.begin() + static_cast<int64_t>(num_numbered_), number,
      [](uint32_t n, const auto& candidate) { return n < candidate->first_waiter_; });
  *group = std::prev(after)->get();
  return &(*group)->missing_[number - (*group)->first_waiter_];
}

void StepRows::Request() {
  if (fetch_ == nullptr) return;
  while (num_requested_ < num_missing_) {
    RowGroup& group = *groups_[requested_group_];
    const size_t number = num_requested_ - group.first_waiter_;
    if (number == group.missing_.size()) {
      ++requested_group_;
      continue;
    }
    const Missing& missing = group.missing_[number];
    if (missing.state == Missing::State::kComing) {  // not given up
      const auto requested = fetch_->Request(*missing.rows, missing.block,
                                             first_waiter_ + static_cast<uint32_t>(num_requested_));
      if (requested == BlockFetch::Requested::kNoRoom) break;
    }
    ++num_requested_;
  }
  fetch_->Start();
}

bool StepRows::Wait(BlockReader::TimePoint deadline) {
  if (fetch_ == nullptr) return false;
  const auto arrivals = fetch_->Wait(deadline);
  for (const BlockFetch::Arrival& arrival : arrivals) {
    RowGroup* group = nullptr;
    Missing* const missing = MissingOf(arrival.waiter, &group);
    if (missing == nullptr || missing->state == Missing::State::kDone) {  // too late
      fetch_->Release(arrival.buffer);
      continue;
    }
    missing->buffer = arrival.buffer;
    missing->state = arrival.data == nullptr ? Missing::State::kFailed : Missing::State::kHere;
    if (arrival.data == nullptr) continue;
    group->Place(arrival.data, *missing);
    --group->pieces_[missing->piece].num_coming;
  }
  return !arrivals.empty();
}

void StepRows::Release(size_t piece) {
  RowGroup& group = *pieces_[piece].group;
  const RowPiece& released = this->piece(piece);
  for (size_t i = 0; i < released.num_missing; ++i) {
    Missing& missing = group.missing_[released.first_missing + i];
    if (missing.state != Missing::State::kHere) continue;
    fetch_->Release(missing.buffer);
    missing.state = Missing::State::kDone;
  }
}

bool StepRows::has_failed(size_t piece) const {
  const RowPiece& asked = this->piece(piece);
  const auto first =
      pieces_[piece].group->missing_.begin() + static_cast<int64_t>(asked.first_missing);
  return std::any_of(
      first, first + static_cast<int64_t>(asked.num_missing),
      [](const Missing& missing) { return missing.state == Missing::State::kFailed; });
}

void StepRows::GiveUp(size_t piece, bool failed_only, std::vector<Late>* late) {
  RowGroup& group = *pieces_[piece].group;
  RowPiece& given_up = group.pieces_[pieces_[piece].number];
  for (size_t i = 0; i < given_up.num_missing; ++i) {
    Missing& missing = group.missing_[given_up.first_missing + i];
    const bool is_late = missing.state == Missing::State::kFailed ||
                         (!failed_only && missing.state == Missing::State::kComing);
    if (!is_late || missing.item < 0) continue;
    if (missing.state == Missing::State::kFailed) fetch_->Release(missing.buffer);
    missing.state = Missing::State::kDone;
    --given_up.num_coming;
    if (missing.first_value != RowGroup::kNone) {
      late->push_back({missing.item, missing.first, group.ranges_[missing.range].num_tokens});
      group.ranges_[missing.range].num_tokens = 0;
      continue;
    }
    if (group.ranges_[missing.first_range].num_tokens == 0) continue;  // for another part of it
    late->push_back({missing.item, 0, 0});
    for (size_t r = missing.first_range; r < missing.end_range; ++r) {
      group.ranges_[r].num_tokens = 0;
    }
  }
}

void AddRows(const SequenceView& view, int kv_head, int64_t visible_end, bool leave_out_zones,
             RowGroup& rows) {
  const int64_t end = std::min(visible_end, view.contents.length);
  const auto add_chunk = [&](const RowChunk& chunk) {
    const int64_t count = std::min(chunk.capacity(), end - chunk.position_begin());
    if (count > 0) rows.Add(chunk.Range(kv_head, count));
  };
  if (view.contents.sinks != nullptr) add_chunk(*view.contents.sinks);
  for (size_t i = 0; i < view.pins.size(); ++i) {
    if (view.contents.segments[i]->begin() >= end) break;
    if (leave_out_zones && view.AnswersByZones(i, visible_end)) continue;
    if (view.pins[i].sealed != nullptr) {
      const SealedHead& head = view.pins[i].sealed->heads[kv_head];
      for (int64_t cluster = 0; cluster < head.index.num_clusters; ++cluster) {
        rows.Add({&head, cluster, 0, head.index.cluster_size(cluster)});
      }
    } else {
      for (const auto& chunk : view.pins[i].chunks) add_chunk(*chunk);
    }
  }
  for (const auto& chunk : view.contents.tail) add_chunk(*chunk);
}

}  // namespace wavekv
