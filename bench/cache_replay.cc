#include "bench/cache_replay.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <set>
#include <utility>

namespace wavekv::bench {
namespace {

constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

// Units in the slots of a policy.
class Cache {
 public:
  Cache(const UnitTrace& trace, const ReplayOptions& options, int64_t cache_bytes)
      : trace_(trace),
        options_(options),
        cache_bytes_(cache_bytes),
        slot_of_(trace.unit_bytes.size(), kNone) {
    // Policies divide slots, so with units of several sizes there are as many as fit on average.
    const auto num_units = static_cast<int64_t>(trace.unit_bytes.size());
    const int64_t num_slots = cache_bytes / (trace.total_bytes() / num_units);
    if (num_slots == 0) return;
    policy_ = MakeReplacementPolicy(options.kind, num_slots).value();
    unit_in_.resize(num_slots);
    read_in_.resize(num_slots);
    seen_step_.resize(num_slots);
    for (int64_t slot = num_slots - 1; slot >= 0; --slot) {
      free_.push_back(static_cast<uint32_t>(slot));
    }
  }

  void BeginBatch(int64_t step) {
    // When nothing could give way, nothing can before the next batch or step.
    if (!options_.keep_step || step != now_.step) is_stuck_ = false;
    now_ = {++now_.batch, step};
  }
  bool Holds(uint32_t unit) const { return slot_of_[unit] != kNone; }

  void Touch(uint32_t unit) {
    const uint32_t slot = slot_of_[unit];
    if (!options_.touch_lazily) policy_->Touch(slot);
    read_in_[slot] = now_;
  }

  void Admit(uint32_t unit) {
    const int64_t bytes = trace_.unit_bytes[unit];
    if (policy_ == nullptr || bytes > cache_bytes_ || is_stuck_) return;
    while (used_bytes_ + bytes > cache_bytes_ || free_.empty()) {
      const auto victim = policy_->Victim([this](uint32_t slot) { return CanEvict(slot); });
      if (!victim.has_value()) {
        is_stuck_ = true;
        return;
      }
      if (options_.touch_lazily && seen_step_[*victim] != read_in_[*victim].step) {
        seen_step_[*victim] = read_in_[*victim].step;
        policy_->Insert(*victim, unit_in_[*victim]);
        policy_->Touch(*victim);
        continue;
      }
      used_bytes_ -= trace_.unit_bytes[unit_in_[*victim]];
      slot_of_[unit_in_[*victim]] = kNone;
      free_.push_back(*victim);
    }
    const uint32_t slot = free_.back();
    free_.pop_back();
    used_bytes_ += bytes;
    slot_of_[unit] = slot;
    unit_in_[slot] = unit;
    read_in_[slot] = now_;
    seen_step_[slot] = now_.step;
    policy_->Insert(slot, unit);
  }

 private:
  struct Moment {
    int64_t batch = -1;
    int64_t step = -1;
  };

  bool CanEvict(uint32_t slot) const {
    const Moment& read = read_in_[slot];
    return options_.keep_step ? read.step != now_.step : read.batch != now_.batch;
  }

  const UnitTrace& trace_;
  const ReplayOptions options_;
  const int64_t cache_bytes_;
  std::unique_ptr<ReplacementPolicy> policy_;
  int64_t used_bytes_ = 0;
  Moment now_;
  bool is_stuck_ = false;
  std::vector<uint32_t> slot_of_;   // per unit
  std::vector<uint32_t> unit_in_;   // per slot
  std::vector<Moment> read_in_;     // per slot
  std::vector<int64_t> seen_step_;  // per slot: the last that the policy heard of
  std::vector<uint32_t> free_;
};

void Count(const UnitTrace& trace, uint32_t unit, bool is_hit, ReplayResult& result) {
  ++result.num_reads;
  result.bytes_read += trace.unit_bytes[unit];
  if (is_hit) {
    ++result.num_hits;
  } else {
    result.bytes_missed += trace.unit_bytes[unit];
  }
}

int64_t NumRuns(std::vector<uint32_t> units) {
  std::sort(units.begin(), units.end());
  int64_t num_runs = 0;
  for (size_t i = 0; i < units.size(); ++i) {
    if (i == 0 || units[i] != units[i - 1] + 1) ++num_runs;
  }
  return num_runs;
}

}  // namespace

int64_t UnitTrace::total_bytes() const {
  return std::accumulate(unit_bytes.begin(), unit_bytes.end(), int64_t{0});
}

void ReplayResult::Add(const ReplayResult& other) {
  num_reads += other.num_reads;
  num_hits += other.num_hits;
  bytes_read += other.bytes_read;
  bytes_missed += other.bytes_missed;
  num_requests += other.num_requests;
  bytes_hinted += other.bytes_hinted;
}

ReplayResult Replay(const UnitTrace& trace, const ReplayOptions& options, int64_t cache_bytes) {
  ReplayResult result;
  if (trace.unit_bytes.empty()) return result;
  Cache cache(trace, options, cache_bytes);
  std::vector<uint32_t> misses;
  for (const Batch& batch : trace.batches) {
    cache.BeginBatch(batch.step);
    misses.clear();
    for (const uint32_t unit : batch.reads) {
      const bool is_hit = cache.Holds(unit);
      if (!is_hit) misses.push_back(unit);
      if (batch.is_counted) Count(trace, unit, is_hit, result);
    }
    // Backwards: the most important one is the last to be touched.
    for (auto unit = batch.reads.rbegin(); unit != batch.reads.rend(); ++unit) {
      if (cache.Holds(*unit)) cache.Touch(*unit);
    }
    for (const uint32_t unit : misses) cache.Admit(unit);
    if (batch.is_counted) result.num_requests += NumRuns(misses);
    if (!options.use_hints) continue;
    for (const uint32_t unit : batch.hints) {
      if (cache.Holds(unit)) continue;
      cache.Admit(unit);
      if (batch.is_counted && cache.Holds(unit)) result.bytes_hinted += trace.unit_bytes[unit];
    }
  }
  return result;
}

ReplayResult ReplayBelady(const UnitTrace& trace, int64_t cache_bytes) {
  // For each read, the batch that reads the unit next.
  const auto num_batches = static_cast<uint32_t>(trace.batches.size());
  std::vector<std::vector<uint32_t>> next_reads(num_batches);
  std::vector<uint32_t> next(trace.unit_bytes.size(), kNone);
  for (uint32_t b = num_batches; b-- > 0;) {
    for (const uint32_t unit : trace.batches[b].reads) {
      next_reads[b].push_back(next[unit]);
      next[unit] = b;
    }
  }

  ReplayResult result;
  std::set<std::pair<uint32_t, uint32_t>> cached;  // (batch that reads it next, unit)
  std::vector<uint32_t> next_of(trace.unit_bytes.size(), kNone);  // of cached units
  int64_t used_bytes = 0;
  for (uint32_t b = 0; b < num_batches; ++b) {
    const Batch& batch = trace.batches[b];
    for (size_t i = 0; i < batch.reads.size(); ++i) {
      const uint32_t unit = batch.reads[i];
      const bool is_hit = next_of[unit] != kNone;
      if (batch.is_counted) Count(trace, unit, is_hit, result);
      if (is_hit) {
        cached.erase({next_of[unit], unit});
        used_bytes -= trace.unit_bytes[unit];
      }
      next_of[unit] = next_reads[b][i];
      if (next_of[unit] == kNone) continue;
      cached.emplace(next_of[unit], unit);
      used_bytes += trace.unit_bytes[unit];
    }
    while (used_bytes > cache_bytes) {
      const auto last = std::prev(cached.end());
      used_bytes -= trace.unit_bytes[last->second];
      next_of[last->second] = kNone;
      cached.erase(last);
    }
  }
  return result;
}

}  // namespace wavekv::bench
