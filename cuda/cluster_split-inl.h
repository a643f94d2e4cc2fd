// The kernel that repairs clusters: none empty, none too large, in order.
#ifndef WAVEKV_CUDA_CLUSTER_SPLIT_INL_H_
#define WAVEKV_CUDA_CLUSTER_SPLIT_INL_H_

#include "cuda/cluster_problem-inl.h"
#include "cuda/kernel.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

// Orders as the numbers do; any number, NaN too, has its place.
WAVEKV_DEVICE uint32_t OrderedBits(float x) {
  const uint32_t bits = FloatBits(x + 0.0f);  // so that both zeros are one
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

// Those who cut a cluster: a warp or a block.
template <bool kBlock>
class Crew {
 public:
  // shared: of a block, what CrewShared says.
  WAVEKV_DEVICE Crew(uint64_t* scratch, float* sums) : scratch_(scratch), sums_(sums) {}

  WAVEKV_DEVICE static uint32_t warp() { return kBlock ? WarpIndex() : 0; }
  WAVEKV_DEVICE static uint32_t num_warps() { return kBlock ? BlockWarps() : 1; }
  WAVEKV_DEVICE static uint32_t thread() { return kBlock ? ThreadIndex() : LaneIndex(); }
  WAVEKV_DEVICE static uint32_t num_threads() { return kBlock ? BlockThreads() : kWarp; }

  WAVEKV_DEVICE void Sync() const {
    if constexpr (kBlock) {
      SyncBlock();
    } else {
      SyncWarp();
    }
  }
  template <typename T>
  WAVEKV_DEVICE T Greatest(T value) const {
    const auto greater = [](T a, T b) { return a < b ? b : a; };
    if constexpr (kBlock) {
      return ReduceBlock(value, T{0}, reinterpret_cast<T*>(scratch_), greater);
    } else {
      return ReduceWarp(value, greater);
    }
  }
  WAVEKV_DEVICE uint32_t Sum(uint32_t value) const {
    if constexpr (kBlock) {
      return SumOfBlock(value, reinterpret_cast<uint32_t*>(scratch_));
    } else {
      return SumOfWarp(value);
    }
  }
  // How many threads before this one say so; *total: of all.
  WAVEKV_DEVICE uint32_t CountBefore(bool so, uint32_t* total) const {
    if constexpr (kBlock) {
      return ExclusiveSumOfBlock(so ? 1u : 0u, reinterpret_cast<uint32_t*>(scratch_), total);
    } else {
      const uint32_t all = Ballot(so);
      *total = static_cast<uint32_t>(PopCount(all));
      return static_cast<uint32_t>(PopCount(all & ((1u << LaneIndex()) - 1u)));
    }
  }
  // The sum of all warps' pieces, for all of them.
  template <int kWords>
  WAVEKV_DEVICE void AddPieces(int stride, Piece<kWords>& piece) const {
    if constexpr (kBlock) {
      SyncBlock();
      WAVEKV_UNROLL
      for (int i = 0; i < 2 * kWords; ++i) {
        const int d = 2 * (LaneIndex() + kWarp * (i / 2)) + i % 2;
        if (d < stride) sums_[WarpIndex() * stride + d] = piece.values[i];
      }
      SyncBlock();
      WAVEKV_UNROLL
      for (int i = 0; i < 2 * kWords; ++i) {
        const int d = 2 * (LaneIndex() + kWarp * (i / 2)) + i % 2;
        piece.values[i] = 0.0f;
        if (d >= stride) continue;
        for (int w = 0; w < BlockWarps(); ++w) piece.values[i] += sums_[w * stride + d];
      }
    }
  }

 private:
  uint64_t* scratch_;
  float* sums_;
};

// Cuts a cluster in two by Euclidean 2-means started from a far pair, as index/bisect_cluster.h
// says.
template <int kWords, bool kBlock>
class Bisection {
 public:
  WAVEKV_DEVICE Bisection(const Problem& problem, uint32_t begin, uint32_t end,
                          const Crew<kBlock>& crew)
      : crew_(crew),
        rows_(problem.rows()),
        scales_(problem.scales()),
        stride_(problem.layout.stride),
        size_(end - begin),
        members_(problem.grouped() + begin),
        sides_(problem.assignment() + begin),
        moved_(problem.unsorted() + begin),
        scores_(problem.scores() + begin) {}

  // Returns the size of the first half.
  WAVEKV_DEVICE uint32_t Cut() {
    mean_ = {};
    ForRows([&](uint32_t, const Piece<kWords>& row) {
      WAVEKV_UNROLL
      for (int i = 0; i < 2 * kWords; ++i) mean_.values[i] += row.values[i];
    });
    crew_.AddPieces(stride_, mean_);
    WAVEKV_UNROLL
    for (int i = 0; i < 2 * kWords; ++i) mean_.values[i] /= static_cast<float>(size_);

    // The first centres: the row farthest from the mean and the row farthest from that one.
    Piece<kWords> direction = LoadMember(Farthest(mean_));
    const Piece<kWords> opposite = LoadMember(Farthest(direction));
    float midpoint = 0.0f;
    WAVEKV_UNROLL
    for (int i = 0; i < 2 * kWords; ++i) {
      const float a = direction.values[i] - mean_.values[i];
      const float b = opposite.values[i] - mean_.values[i];
      direction.values[i] = a - b;
      midpoint = MulAdd(a - b, 0.5f * (a + b), midpoint);
    }
    midpoint = SumOfWarp(midpoint);

    const uint32_t smallest = Max(size_ / kSmallestShare, 1u);
    uint32_t first_size = 0;
    for (int pass = 0; pass < kBisectPasses; ++pass) {
      Score(direction);
      uint32_t threshold = OrderedBits(midpoint);
      uint32_t count = 0, most = 0, inverse_least = 0;
      for (uint32_t i = crew_.thread(); i < size_; i += crew_.num_threads()) {
        const uint32_t bits = OrderedBits(scores_[i]);
        count += bits > threshold ? 1u : 0u;
        most = Max(most, bits);
        inverse_least = Max(inverse_least, ~bits);
      }
      count = crew_.Sum(count);
      most = crew_.Greatest(most);
      const bool equal = most == ~crew_.Greatest(inverse_least);
      // Points that cannot be told apart are halved by order.
      first_size = equal ? size_ / 2 : Max(smallest, Min(count, size_ - smallest));
      uint32_t num_equals = 0;  // of those at the threshold, how many go to the first half
      if (equal || first_size != count) {
        threshold = equal ? most : FindThreshold(first_size);
        num_equals = first_size - CountAbove(threshold);
      }
      const bool changed = Divide(threshold, num_equals);
      if (equal || (pass > 0 && !changed) || pass + 1 == kBisectPasses) break;

      Piece<kWords> first = {}, second = {};
      ForRows([&](uint32_t i, const Piece<kWords>& row) {
        const bool in_first = sides_[i] != 0;
        WAVEKV_UNROLL
        for (int j = 0; j < 2 * kWords; ++j) {
          const float value = row.values[j] - mean_.values[j];
          first.values[j] += in_first ? value : 0.0f;
          second.values[j] += in_first ? 0.0f : value;
        }
      });
      crew_.AddPieces(stride_, first);
      crew_.AddPieces(stride_, second);
      midpoint = 0.0f;
      WAVEKV_UNROLL
      for (int j = 0; j < 2 * kWords; ++j) {
        const float a = first.values[j] / static_cast<float>(first_size);
        const float b = second.values[j] / static_cast<float>(size_ - first_size);
        direction.values[j] = a - b;
        midpoint = MulAdd(a - b, 0.5f * (a + b), midpoint);
      }
      midpoint = SumOfWarp(midpoint);
    }
    Move(first_size);
    return first_size;
  }

 private:
  static constexpr int kBatch = kWords <= 2 ? 4 : kWords <= 4 ? 2 : 1;

  WAVEKV_DEVICE Piece<kWords> LoadMember(uint32_t i) const {
    const uint32_t member = members_[i];
    return LoadHalves<kWords>(rows_ + int64_t{member} * (stride_ / 2), stride_ / 2,
                              scales_[member]);
  }

  template <typename Use>
  WAVEKV_DEVICE void ForRows(const Use& use) const {
    for (uint32_t i = crew_.warp() * kBatch; i < size_; i += crew_.num_warps() * kBatch) {
      Piece<kWords> rows[kBatch];
      WAVEKV_UNROLL
      for (int b = 0; b < kBatch; ++b) rows[b] = LoadMember(Min(i + b, size_ - 1));
      WAVEKV_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        if (i + b < size_) use(i + b, rows[b]);
      }
    }
  }
  // use(i, the sum of term(row i, j) over the row's elements).
  template <typename Term, typename Use>
  WAVEKV_DEVICE void ForSums(const Term& term, const Use& use) const {
    for (uint32_t i = crew_.warp() * kBatch; i < size_; i += crew_.num_warps() * kBatch) {
      Piece<kWords> rows[kBatch];
      float sums[kBatch] = {};
      WAVEKV_UNROLL
      for (int b = 0; b < kBatch; ++b) rows[b] = LoadMember(Min(i + b, size_ - 1));
      WAVEKV_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        WAVEKV_UNROLL
        for (int j = 0; j < 2 * kWords; ++j) sums[b] += term(rows[b], j);
      }
      WAVEKV_UNROLL
      for (int b = 0; b < kBatch; ++b) sums[b] = SumOfWarp(sums[b]);
      WAVEKV_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        if (i + b < size_) use(i + b, sums[b]);
      }
    }
  }

  // Of equals, the first.
  WAVEKV_DEVICE uint32_t Farthest(const Piece<kWords>& from) const {
    uint64_t most = 0;
    ForSums(
        [&](const Piece<kWords>& row, int j) {
          const float difference = row.values[j] - from.values[j];
          return difference * difference;
        },
        [&](uint32_t i, float squared) {
          most = Max(most, uint64_t{OrderedBits(squared)} << 32 | (0xffffffffu - i));
        });
    return 0xffffffffu - static_cast<uint32_t>(crew_.Greatest(most));
  }

  WAVEKV_DEVICE void Score(const Piece<kWords>& direction) const {
    ForSums([&](const Piece<kWords>& row,
                int j) { return (row.values[j] - mean_.values[j]) * direction.values[j]; },
            [&](uint32_t i, float score) {
              if (LaneIndex() == 0) scores_[i] = score;
            });
    crew_.Sync();
  }

  WAVEKV_DEVICE uint32_t CountAbove(uint32_t bits) const {
    uint32_t count = 0;
    for (uint32_t i = crew_.thread(); i < size_; i += crew_.num_threads()) {
      count += OrderedBits(scores_[i]) > bits ? 1u : 0u;
    }
    return crew_.Sum(count);
  }
  // The rank-th greatest score, from 1.
  WAVEKV_DEVICE uint32_t FindThreshold(uint32_t rank) const {
    uint32_t threshold = 0;
    for (int bit = 31; bit >= 0; --bit) {
      const uint32_t candidate = threshold | 1u << bit;
      if (CountAbove(candidate - 1) >= rank) threshold = candidate;
    }
    return threshold;
  }

  // To the first half go those above the threshold and the first num_equals of those at it. Returns
  // whether anything is different from what sides_ held.
  WAVEKV_DEVICE bool Divide(uint32_t threshold, uint32_t num_equals) const {
    uint32_t equals = 0, changes = 0;
    for (uint32_t begin = 0; begin < size_; begin += crew_.num_threads()) {
      const uint32_t i = begin + crew_.thread();
      const uint32_t bits = i < size_ ? OrderedBits(scores_[i]) : 0u;
      uint32_t total = 0;
      const uint32_t rank =
          num_equals == 0 ? 0u : equals + crew_.CountBefore(i < size_ && bits == threshold, &total);
      equals += total;
      if (i < size_) {
        const uint32_t side = bits > threshold || (bits == threshold && rank < num_equals);
        changes += sides_[i] != side ? 1u : 0u;
        sides_[i] = side;
      }
    }
    crew_.Sync();
    return crew_.Sum(changes) != 0;
  }

  // Brings the first half before the second.
  WAVEKV_DEVICE void Move(uint32_t first_size) const {
    uint32_t firsts = 0;
    for (uint32_t begin = 0; begin < size_; begin += crew_.num_threads()) {
      const uint32_t i = begin + crew_.thread();
      const bool in_first = i < size_ && sides_[i] != 0;
      uint32_t total = 0;
      const uint32_t rank = firsts + crew_.CountBefore(in_first, &total);
      firsts += total;
      if (i < size_) moved_[in_first ? rank : first_size + i - rank] = members_[i];
    }
    crew_.Sync();
    for (uint32_t i = crew_.thread(); i < size_; i += crew_.num_threads()) {
      members_[i] = moved_[i];
    }
    crew_.Sync();
  }

  const Crew<kBlock>& crew_;
  const uint32_t* rows_;
  const float* scales_;
  const int stride_;
  const uint32_t size_;
  uint32_t* members_;
  uint32_t* sides_;
  uint32_t* moved_;
  float* scores_;
  Piece<kWords> mean_;
};

template <int kWords>
constexpr int SplitThreads() {
  return kWords <= 4 ? 512 : 256;
}

// Leaves no cluster empty or too large, and puts them into the order of their first members.
//
// A block a problem. As on the CPU the largest cluster is cut, of equals the first, until there are
// enough clusters and none is too large. In each round those are cut, by a warp each, of which it
// is certain that their turn comes before that of any half which the round makes: while there are
// any, all that are too large; then those larger than a half of the largest can be.
template <int kWords>
WAVEKV_LAUNCH_BOUNDS(SplitThreads<kWords>(), 1)
WAVEKV_KERNEL SplitKernel(Level level) {
  const auto num_threads = static_cast<uint32_t>(BlockThreads());
  const Problem problem(level, blockIdx.x);
  if (problem.num_points == 0) return;
  const auto num_points = static_cast<uint32_t>(problem.num_points);
  const auto num_clusters = static_cast<uint32_t>(problem.num_clusters);
  const uint32_t num_words = (num_points + 31) / 32;
  const auto thread = static_cast<uint32_t>(ThreadIndex());
  SharedMemory shared;
  uint64_t* const scratch64 = shared.Take<uint64_t>(33);
  uint32_t* const scratch = reinterpret_cast<uint32_t*>(scratch64);
  uint32_t* const next_split = shared.Take<uint32_t>(1);
  // First for sums over rows, in the end for the order.
  const int64_t words_max = (problem.layout.points_max + 31) / 32;
  const int64_t sums_size = int64_t{BlockWarps()} * problem.layout.stride;
  uint32_t* const words = shared.Take<uint32_t>(Max(2 * words_max, sums_size));

  // Runs of grouped(), in order: those of the clusters that are not empty.
  uint32_t* runs = problem.runs(0);
  uint32_t* next_runs = problem.runs(1);
  uint32_t num_runs = 0;
  for (uint32_t first = 0; first < num_clusters; first += num_threads) {
    const uint32_t c = first + thread;
    const uint32_t begin = c < num_clusters ? problem.group_offsets()[c] : 0u;
    const bool full = c < num_clusters && problem.group_offsets()[c + 1] > begin;
    uint32_t total = 0;
    const uint32_t rank = num_runs + ExclusiveSumOfBlock(full ? 1u : 0u, scratch, &total);
    num_runs += total;
    if (full) runs[rank] = begin;
  }
  if (thread == 0) runs[num_runs] = num_points;
  SyncBlock();

  const auto count_above = [&](uint32_t size) {
    uint32_t count = 0;
    for (uint32_t r = thread; r < num_runs; r += num_threads) {
      count += runs[r + 1] - runs[r] > size ? 1u : 0u;
    }
    return SumOfBlock(count, scratch);
  };
  while (true) {
    uint32_t largest = 0;
    for (uint32_t r = thread; r < num_runs; r += num_threads) {
      largest = Max(largest, runs[r + 1] - runs[r]);
    }
    largest = ReduceBlock(largest, 0u, scratch, [](uint32_t a, uint32_t b) { return Max(a, b); });
    const bool too_large = largest > level.cluster_points_max;
    if (largest < 2 || (!too_large && num_runs >= num_clusters)) break;

    // Cut are the runs above this size and the first num_equals of those that have it.
    uint32_t size =
        too_large ? level.cluster_points_max : largest - Max(largest / kSmallestShare, 1u);
    uint32_t num_equals = 0;
    if (!too_large && count_above(size) > num_clusters - num_runs) {
      const uint32_t missing = num_clusters - num_runs;
      uint32_t high = largest;
      while (size < high) {
        const uint32_t middle = size + (high - size) / 2;
        if (count_above(middle) <= missing) {
          high = middle;
        } else {
          size = middle + 1;
        }
      }
      num_equals = missing - count_above(size);
    }

    uint32_t num_splits = 0, equals = 0;
    for (uint32_t first = 0; first < num_runs; first += num_threads) {
      const uint32_t r = first + thread;
      const uint32_t of_run = r < num_runs ? runs[r + 1] - runs[r] : 0u;
      bool split = of_run > size;
      uint32_t total = 0;
      if (num_equals > 0) {
        const bool equal = r < num_runs && of_run == size;
        const uint32_t rank = equals + ExclusiveSumOfBlock(equal ? 1u : 0u, scratch, &total);
        equals += total;
        split = split || (equal && rank < num_equals);
      }
      const uint32_t before = num_splits + ExclusiveSumOfBlock(split ? 1u : 0u, scratch, &total);
      num_splits += total;
      if (r < num_runs) next_runs[r + before] = runs[r];
      if (split) problem.splits()[before] = r;
    }
    if (thread == 0) {
      next_runs[num_runs + num_splits] = num_points;
      *next_split = 0;
    }
    SyncBlock();
    if (largest > kBlockRun) {
      const Crew<true> crew(scratch64, reinterpret_cast<float*>(words));
      for (uint32_t i = 0; i < num_splits; ++i) {
        const uint32_t r = problem.splits()[i];
        const uint32_t begin = runs[r], end = runs[r + 1];
        if (end - begin <= kBlockRun) continue;
        const uint32_t cut = Bisection<kWords, true>(problem, begin, end, crew).Cut();
        if (thread == 0) next_runs[r + i + 1] = begin + cut;
      }
    }
    const Crew<false> crew(nullptr, nullptr);
    while (true) {
      uint32_t i = LaneIndex() == 0 ? AtomicAdd(next_split, 1u) : 0u;
      i = Shuffle(i, 0);
      if (i >= num_splits) break;
      const uint32_t r = problem.splits()[i];
      const uint32_t begin = runs[r], end = runs[r + 1];
      if (end - begin > kBlockRun) continue;
      const uint32_t cut = Bisection<kWords, false>(problem, begin, end, crew).Cut();
      if (LaneIndex() == 0) next_runs[r + i + 1] = begin + cut;
    }
    SyncBlock();
    uint32_t* const swapped = runs;
    runs = next_runs;
    next_runs = swapped;
    num_runs += num_splits;
  }

  // A run's place is the number of first members before its own.
  const uint32_t* const grouped = problem.grouped();
  uint32_t* const bitmap = words;
  uint32_t* const before_word = words + words_max;
  for (uint32_t w = thread; w < num_words; w += num_threads) bitmap[w] = 0;
  SyncBlock();
  for (uint32_t r = thread; r < num_runs; r += num_threads) {
    const uint32_t member = grouped[runs[r]];
    AtomicOr(bitmap + member / 32, 1u << member % 32);
  }
  SyncBlock();
  uint32_t before = 0;
  for (uint32_t first = 0; first < num_words; first += num_threads) {
    const uint32_t w = first + thread;
    const auto bits = static_cast<uint32_t>(w < num_words ? PopCount(bitmap[w]) : 0);
    uint32_t total = 0;
    const uint32_t upto = before + ExclusiveSumOfBlock(bits, scratch, &total);
    before += total;
    if (w < num_words) before_word[w] = upto;
  }
  SyncBlock();
  uint32_t* const order = problem.splits();
  for (uint32_t r = thread; r < num_runs; r += num_threads) {
    const uint32_t member = grouped[runs[r]];
    const uint32_t below = bitmap[member / 32] & ((1u << member % 32) - 1u);
    order[before_word[member / 32] + static_cast<uint32_t>(PopCount(below))] = r;
  }
  SyncBlock();
  uint32_t* const offsets = problem.OffsetsOf(level.number);
  uint32_t* const members = problem.MembersOf(level.number);
  uint32_t begin = 0;
  for (uint32_t first = 0; first < num_runs; first += num_threads) {
    const uint32_t c = first + thread;
    const uint32_t size = c < num_runs ? runs[order[c] + 1] - runs[order[c]] : 0u;
    uint32_t total = 0;
    const uint32_t upto = begin + ExclusiveSumOfBlock(size, scratch, &total);
    begin += total;
    if (c < num_runs) offsets[c] = upto;
  }
  if (thread == 0) {
    offsets[num_runs] = num_points;
    *problem.NumClustersOf(level.number) = num_runs;
  }
  SyncBlock();
  for (uint32_t c = WarpIndex(); c < num_runs; c += BlockWarps()) {
    const uint32_t from = runs[order[c]], to = offsets[c], size = offsets[c + 1] - to;
    for (uint32_t i = LaneIndex(); i < size; i += kWarp) members[to + i] = grouped[from + i];
  }
}

}  // namespace
}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_CLUSTER_SPLIT_INL_H_
