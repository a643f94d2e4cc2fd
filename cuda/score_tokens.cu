// Scores tokens by their codes, for all heads of a GQA group.
//
// Bound by memory: a token is its code (16 bytes at head_dim 128 and one bit an element), its
// factor (2) and 8 written bytes per head. Tensor cores multiply, exactly: a mask takes bits b and
// b + 16 of a word of a code to two fp16 numbers that are powers of two or 0 (bit 3 is 2^(3 - 24)),
// the query's integers are multiplied by what makes all products multiples of 2^-19, and fp32 holds
// their sums. Planes of a code are more elements, of weights 1, 2, 4 and 8.
//
// A block has a run of the task's tokens, in the order of results: it adds up the sizes of the
// task's clusters to find those that the run meets. Its warps take tiles of 32 tokens, of which
// lane 4 g + t loads words of tokens g, g + 8, g + 16 and g + 24 and gets the products of heads 2t
// and 2t + 1.
#include "cuda/kernel.h"
#include "cuda/mma.h"
#include "cuda/score_tokens.h"

namespace wavekv::WAVEKV_GPU_NAMESPACE {
namespace {

constexpr int kThreads = 128;
constexpr int kTokens = 512;    // of a block
constexpr int kHeads = 8;       // that share a pass over the codes
constexpr int kTile = 32;       // tokens that a warp multiplies at once
constexpr int kLaneTokens = 4;  // of them, that a lane loads
constexpr int kWordSteps = 8;   // of 16 bits, that make two columns of A of each of four lanes
constexpr int kThreadClusters = 4;

// Bits of a word whose place makes a number that doubles with every place; those above are moved
// down by a byte first.
constexpr int kPlainBits = 12;
constexpr int PlaceOf(int bit) { return bit < kPlainBits ? bit : bit - 8; }
// Products are multiples of 2^-kFractionBits: an integer of 7 bits times 2^(plane + 5 - place), at
// most 2^15, and 2^(place - 24).
constexpr int kFractionBits = 19;

// Words of 32 bits of a token's code.
constexpr int CodeWords32(int dim, int code_bits) {
  return static_cast<int>(2 * code_bits * CodeWords(dim));
}
constexpr int64_t FragmentsOf(int num_words) {
  return int64_t{(num_words + 3) / 4} * kWordSteps * kWarp;
}

struct HeadNumbers {
  float inverse;  // 1 / step
  float step;
  float origin;        // product with a code whose elements are all in the middle
  float noise;         // times a factor, the standard deviation of a logit
  float logit_spread;  // |q|^2 / head_dim_k
};

// To nearest, ties to even. REQUIRES: |x| < 2^22.
WAVEKV_DEVICE float RoundToInteger(float x) {
  constexpr float kOnes = 12582912.0f;  // 1.5 * 2^23, where numbers are integers
  return (x + kOnes) - kOnes;
}
// Element of a query as an integer. The product is rounded, as the CPU's is, before it is rounded
// to an integer: a plain one might be fused with the addition.
WAVEKV_DEVICE float IntegerOf(float x, float inverse) {
  return RoundToInteger(MulAdd(x, inverse, 0.0f));
}

WAVEKV_DEVICE void MeasureHeads(const float* queries, int count, int dim, int code_bits,
                                HeadNumbers* heads) {
  for (int h = WarpIndex(); h < count; h += BlockWarps()) {
    const float* query = queries + h * dim;
    float most = 0.0f, squared = 0.0f, sum = 0.0f;
    for (int g = LaneIndex(); g < dim / 4; g += kWarp) {
      float magnitudes = 0.0f;
      WAVEKV_UNROLL
      for (int i = 4 * g; i < 4 * g + 4; ++i) {
        magnitudes += Abs(query[i]);
        squared = MulAdd(query[i], query[i], squared);
      }
      most = Max(most, magnitudes);
    }
    most = MaxOfWarp(most);
    squared = SumOfWarp(squared);
    const float inverse = most > 0.0f ? kQueryGroupMax / most : 0.0f;
    for (int i = LaneIndex(); i < dim; i += kWarp) sum += IntegerOf(query[i], inverse);
    sum = SumOfWarp(sum);
    if (LaneIndex() > 0) continue;
    const float middle = static_cast<float>((1 << code_bits) - 1) / 2.0f;
    heads[h] = {inverse, most / kQueryGroupMax, middle * sum, CodeNoise(code_bits) * Sqrt(squared),
                squared / static_cast<float>(dim)};
  }
}

// The queries' integers as matrices B, one per step of a word, a column per head.
WAVEKV_DEVICE void SliceQueries(const float* queries, int count, int dim, int code_bits,
                                const HeadNumbers* heads, uint64_t* fragments) {
  const int num_words = CodeWords32(dim, code_bits), plane_words = CodeWords32(dim, 1);
  const auto num_fragments = static_cast<int>(FragmentsOf(num_words));
  for (int f = ThreadIndex(); f < num_fragments; f += BlockThreads()) {
    const int head = f % kWarp / 4, step = f / kWarp % kWordSteps;
    const int word = f / kWarp / kWordSteps * 4 + f % 4;
    uint64_t fragment = 0;
    if (head < count && word < num_words) {
      const int plane = word / plane_words;
      WAVEKV_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int bit = 2 * step + j / 2;
        const int element = word % plane_words * 32 + bit + j % 2 * 16;
        if (element >= dim) continue;
        const float integer = IntegerOf(queries[head * dim + element], heads[head].inverse);
        const int weight = plane + 24 - kFractionBits - PlaceOf(bit);
        const float power = FloatFromBits(static_cast<uint32_t>(127 + weight) << 23);
        fragment |= static_cast<uint64_t>(FloatToHalf(integer * power)) << (16 * j);
      }
    }
    fragments[f] = fragment;
  }
}

// The clusters that a block's tokens belong to, in any order, and of each token which one.
struct Members {
  int* count;
  uint32_t* clusters;  // [kTokens]
  int* shifts;         // [kTokens]: from a token's number in the block to that in the index
  uint16_t* begins;    // [kTokens]: the cluster's first token in the block
  uint16_t* ends;      // [kTokens]
  uint16_t* of_token;  // [kTokens]
};

// Returns how many tokens there are from `begin` on, at most kTokens. scratch: [33].
WAVEKV_DEVICE int FindMembers(const ScoreTokensTask& task, int64_t begin, int64_t* scratch,
                              const Members& members) {
  const ClusterIndex& index = *task.index;
  if (ThreadIndex() == 0) *members.count = 0;
  SyncBlock();
  int64_t at = 0;  // tokens of the clusters before
  for (int64_t first = 0; first < task.num_clusters && at < begin + kTokens;
       first += kThreads * kThreadClusters) {
    const int64_t mine = first + ThreadIndex() * kThreadClusters;
    uint32_t clusters[kThreadClusters], offsets[kThreadClusters];
    int64_t sizes[kThreadClusters], size = 0, total = 0;
    WAVEKV_UNROLL
    for (int i = 0; i < kThreadClusters; ++i) {
      clusters[i] = mine + i < task.num_clusters ? task.clusters[mine + i] : 0;
    }
    WAVEKV_UNROLL
    for (int i = 0; i < kThreadClusters; ++i) {
      offsets[i] = index.offsets[clusters[i]];
      const uint32_t end = index.offsets[clusters[i] + 1];
      sizes[i] = mine + i < task.num_clusters ? end - offsets[i] : 0;
      size += sizes[i];
    }
    int64_t from = at + ExclusiveSumOfBlock(size, scratch, &total);
    WAVEKV_UNROLL
    for (int i = 0; i < kThreadClusters; ++i) {
      const int64_t low = Max(from, begin), high = Min(from + sizes[i], begin + kTokens);
      if (low < high) {
        const int slot = AtomicAdd(members.count, 1);
        members.clusters[slot] = clusters[i];
        members.shifts[slot] = static_cast<int>(offsets[i] + begin - from);
        members.begins[slot] = static_cast<uint16_t>(low - begin);
        members.ends[slot] = static_cast<uint16_t>(high - begin);
      }
      from += sizes[i];
    }
    at += total;
  }
  SyncBlock();
  for (int slot = WarpIndex(); slot < *members.count; slot += BlockWarps()) {
    for (int i = members.begins[slot] + LaneIndex(); i < members.ends[slot]; i += kWarp) {
      members.of_token[i] = static_cast<uint16_t>(slot);
    }
  }
  return static_cast<int>(Max<int64_t>(0, Min<int64_t>(at - begin, kTokens)));
}

// centroid_logits [members, kHeads]: q . c of the clusters.
WAVEKV_DEVICE void FindCentroidLogits(const ScoreTokensTask& task, int first_head, int count,
                                      const HeadNumbers* heads, const Members& members,
                                      float* centroid_logits) {
  const ClusterIndex& index = *task.index;
  for (int i = ThreadIndex(); i < *members.count * kHeads; i += BlockThreads()) {
    const int head = i % kHeads;
    if (head >= count) continue;
    const uint32_t cluster = members.clusters[i / kHeads];
    float logit = task.log_masses[(first_head + head) * task.log_masses_stride + cluster] -
                  index.log_sizes[cluster];
    if (task.mass == MassEstimate::kSecondOrder) {
      logit -= Min(0.5f * heads[head].logit_spread * index.key_spreads[cluster], kLogMassGainMax);
    }
    centroid_logits[i] = logit;
  }
}

// Scores the warp's tokens from number `tile` of the block's `count` on, whose results lie at
// `begin` of a row.
WAVEKV_DEVICE void ScoreTile(const ScoreTokensTask& task, int num_words, int first_head,
                             int num_heads, int64_t begin, int tile, int count,
                             const HeadNumbers* heads, const uint64_t* fragments,
                             const Members& members, const float* centroid_logits) {
  const ClusterIndex& index = *task.index;
  const auto* codes = reinterpret_cast<const uint32_t*>(index.codes);
  const int t = LaneIndex() % 4;
  int slots[kLaneTokens];
  int64_t tokens[kLaneTokens];
  float factors[kLaneTokens];
  WAVEKV_UNROLL
  for (int r = 0; r < kLaneTokens; ++r) {
    const int i = tile + 8 * r + LaneIndex() / 4;
    slots[r] = i < count ? members.of_token[i] : -1;
    tokens[r] = slots[r] >= 0 ? i + members.shifts[slots[r]] : 0;
    factors[r] = slots[r] >= 0 ? HalfToFloat(index.code_factors[tokens[r]]) : 0.0f;
  }
  FragmentC sums[2] = {};
  for (int first = 0; first < num_words; first += 4) {
    uint32_t words[kLaneTokens];
    WAVEKV_UNROLL
    for (int r = 0; r < kLaneTokens; ++r) {
      const bool wanted = slots[r] >= 0 && first + t < num_words;
      words[r] = wanted ? codes[tokens[r] * num_words + first + t] : 0;
    }
    SyncWarp();  // tensor cores want lanes together
    WAVEKV_UNROLL
    for (int step = 0; step < kWordSteps; ++step) {
      FragmentA a[2];
      WAVEKV_UNROLL
      for (int r = 0; r < kLaneTokens; ++r) {
        const uint32_t word = 2 * step < kPlainBits ? words[r] : words[r] >> 8;
        const uint32_t mask = 0x00010001u << PlaceOf(2 * step);
        a[r / 2].words[r % 2] = word & mask;
        a[r / 2].words[r % 2 + 2] = word & (mask << 1);
      }
      const uint64_t both = fragments[(first / 4 * kWordSteps + step) * kWarp + LaneIndex()];
      const FragmentB b = {{static_cast<uint32_t>(both), static_cast<uint32_t>(both >> 32)}};
      MultiplyAdd<DType::kFloat16>(a[0], b, sums[0]);
      MultiplyAdd<DType::kFloat16>(a[1], b, sums[1]);
    }
  }
  WAVEKV_UNROLL
  for (int n = 0; n < 2; ++n) {
    const int head = 2 * t + n;
    if (head >= num_heads) continue;
    const HeadNumbers numbers = heads[head];
    const int64_t row = (first_head + head) * task.stride + begin + tile;
    WAVEKV_UNROLL
    for (int r = 0; r < kLaneTokens; ++r) {
      if (slots[r] < 0) continue;
      const float integer = sums[r / 2].values[r % 2 * 2 + n] * float{1 << kFractionBits};
      const float product = (integer - numbers.origin) * numbers.step;
      const float logit = MulAdd(factors[r], product, centroid_logits[slots[r] * kHeads + head]);
      const int64_t at = row + 8 * r + LaneIndex() / 4;
      task.logits[at] = logit;
      task.rank_scores[at] = MulAdd(numbers.noise, factors[r], logit);
    }
  }
}

WAVEKV_KERNEL WAVEKV_LAUNCH_BOUNDS(kThreads)
    ScoreTokensKernel(const ScoreTokensTask* tasks, int dim, int code_bits) {
  const ScoreTokensTask& task = tasks[blockIdx.x];
  if (task.num_queries == 0 || task.num_clusters == 0) return;
  const int num_words = CodeWords32(dim, code_bits);
  SharedMemory shared;
  uint64_t* const fragments = shared.Take<uint64_t>(FragmentsOf(num_words));
  float* const centroid_logits = shared.Take<float>(kTokens * kHeads);
  HeadNumbers* const heads = shared.Take<HeadNumbers>(kHeads);
  int64_t* const scratch = shared.Take<int64_t>(33);
  Members members;
  members.count = shared.Take<int>(1);
  members.clusters = shared.Take<uint32_t>(kTokens);
  members.shifts = shared.Take<int>(kTokens);
  members.begins = shared.Take<uint16_t>(kTokens);
  members.ends = shared.Take<uint16_t>(kTokens);
  members.of_token = shared.Take<uint16_t>(kTokens);

  const int64_t begin = int64_t{blockIdx.y} * kTokens;
  const int count = FindMembers(task, begin, scratch, members);
  if (count == 0) return;
  for (int first_head = 0; first_head < task.num_queries; first_head += kHeads) {
    const int num_heads = Min(kHeads, task.num_queries - first_head);
    const float* queries = task.queries + int64_t{first_head} * dim;
    SyncBlock();  // the last pass is over
    MeasureHeads(queries, num_heads, dim, code_bits, heads);
    SyncBlock();
    SliceQueries(queries, num_heads, dim, code_bits, heads, fragments);
    FindCentroidLogits(task, first_head, num_heads, heads, members, centroid_logits);
    SyncBlock();
    for (int tile = WarpIndex() * kTile; tile < count; tile += BlockWarps() * kTile) {
      ScoreTile(task, num_words, first_head, num_heads, begin, tile, count, heads, fragments,
                members, centroid_logits);
    }
  }
}

}  // namespace

absl::Status ScoreTokens(GpuTasks<ScoreTokensTask> tasks, const TaskBounds& bounds,
                         GpuStream stream) {
  if (bounds.num_queries == 0) return absl::OkStatus();
  const int dim = bounds.shape.head_dim_k;
  SharedSize size;
  size.Add<uint64_t>(FragmentsOf(CodeWords32(dim, bounds.code_bits)));
  size.Add<float>(kTokens * kHeads).Add<HeadNumbers>(kHeads).Add<int64_t>(33).Add<int>(1);
  size.Add<uint32_t>(kTokens).Add<int>(kTokens);
  size.Add<uint16_t>(kTokens).Add<uint16_t>(kTokens).Add<uint16_t>(kTokens);
  const GridShape grid = {static_cast<unsigned>(tasks.count),
                          static_cast<unsigned>((bounds.num_items + kTokens - 1) / kTokens)};
  return Launch("ScoreTokens", ScoreTokensKernel, grid, kThreads, size.bytes(), stream, tasks.tasks,
                dim, bounds.code_bits);
}

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE
