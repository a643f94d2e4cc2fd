// How often caches of the fast tier would hit, by replacement policy, unit of caching and size, on
// what consecutive queries read of the shipped trace and of synthetic heads. Hit ratios come from
// replaying recorded reads; the times are those of the policies alone, per look-up, and of looking
// up blocks that are all there (PinRelease) and admitting some where no slot is free (Admit).
//
// The last line: the trace with the default zones, and as RetroInfer reports it with whole clusters
// (1.8 % of the tokens, zones `clusters`, LRU):
//   cache unit=block size_pct=5 lru=.. slru=.. s3fifo=.. belady=.. cluster_lru=..
#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "bench/bench_main.h"
#include "bench/cache_replay.h"
#include "bench/head_source.h"
#include "bench/unit_trace.h"
#include "buffer/block_cache.h"
#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv::bench {
namespace {

constexpr ReplacementKind kKinds[] = {ReplacementKind::kLru, ReplacementKind::kSlru,
                                      ReplacementKind::kS3Fifo};
constexpr CacheUnit kTokens = {1};
constexpr CacheUnit kClusters = {0};
constexpr double kSizes[] = {0.025, 0.05, 0.1, 0.25};  // of the bytes of all blocks
// Rankings for hints reach so many times as far as what is read.
constexpr double kHintReaches[] = {1.25, 1.5, 2.0};

struct Arguments {
  std::string trace = "tests/testdata/traces/tinylm_8k.safetensors";
  std::vector<int64_t> tokens = {32768};
  std::vector<int64_t> queries = {128};
};

// What a source's queries read with one kind of zones.
struct Recording {
  std::string source;
  std::string zones;
  std::vector<RecordedHead> heads;
  std::vector<std::vector<HeadAccesses>> wider;  // [hint reach][head]
  int64_t num_queries = 0;
  int64_t num_tokens = 0;  // sealed, of all heads
  int64_t all_bytes = 0;   // of all blocks

  int64_t CacheBytes(double share) const {
    return static_cast<int64_t>(share * static_cast<double>(all_bytes));
  }
  CacheUnit Blocks() const { return {heads[0].shape.block_tokens}; }
  // Query and head pairs that are counted.
  double num_counted() const {
    return static_cast<double>((num_queries - num_queries / 4) *
                               static_cast<int64_t>(heads.size()));
  }
};

absl::StatusOr<Recording> Record(const HeadSource& source, const AttendOptions& zones,
                                 const std::string& zones_name) {
  TraceEvalOptions options;
  options.budgets = {zones};
  for (const double reach : kHintReaches) {
    options.budgets.push_back(zones);
    options.budgets.back().retrieval = Budget::Ratio(reach * zones.retrieval.ratio());
  }
  options.queries = source.queries;
  options.kv_dtype = DType::kBFloat16;
  Recording recording{.source = source.name, .zones = zones_name};
  recording.wider.resize(std::size(kHintReaches));
  for (size_t i = 0; i < source.heads.size(); ++i) {
    WAVEKV_ASSIGN_OR_RETURN(std::vector<HeadAccesses> accesses,
                            RecordAccesses(source.heads[i], options));
    for (size_t reach = 0; reach < recording.wider.size(); ++reach) {
      recording.wider[reach].push_back(std::move(accesses[1 + reach]));
    }
    RecordedHead& head = recording.heads.emplace_back();
    head.layer = source.layers[i];
    head.shape = BlockShapeOf(StoredTokenBytes(source.heads[i], options));
    head.reads = std::move(accesses[0]);
    recording.num_queries = static_cast<int64_t>(head.reads.queries.size());
    for (const HeadAccesses::Segment& segment : head.reads.segments) {
      for (const int64_t tokens : segment.cluster_tokens) recording.num_tokens += tokens;
    }
  }
  recording.all_bytes = AllBlocksBytes(recording.heads);
  return recording;
}

double KiB(int64_t bytes, const Recording& recording) {
  return static_cast<double>(bytes) / 1024 / recording.num_counted();
}

// Hit ratios, and what is fetched, by unit and size.
void PrintHitRatios(const Recording& recording) {
  const int64_t token_bytes = recording.num_tokens * recording.heads[0].shape.token_bytes;
  fmt::print(
      "\n{}, zones {}: {} heads, {} tokens in {:.1f} MiB of blocks ({:.0f} % padding), {} of {} "
      "queries counted\n"
      "reads, requests and KiB are per query and head; sizes are shares of the bytes of all blocks;"
      " lru-: a step's misses push out what the step has read\n"
      "lazy: lru that hears of reads when it names a victim, as the block cache's does\n"
      "{:>8} {:>6} {:>7} {:>6} | hit ratio: {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} | requests: {:>6} "
      "{:>6} |"
      " KiB fetched: {:>7} {:>7} {:>7}\n",
      recording.source, recording.zones, recording.heads.size(), recording.num_tokens,
      static_cast<double>(recording.all_bytes) / (1 << 20),
      100.0 * (static_cast<double>(recording.all_bytes) / static_cast<double>(token_bytes) - 1.0),
      recording.num_queries - recording.num_queries / 4, recording.num_queries, "unit", "reads",
      "KiB", "size", "lru-", "lru", "lazy", "slru", "s3fifo", "belady", "lru", "s3fifo", "lru",
      "s3fifo", "belady");
  std::vector<std::pair<std::string, CacheUnit>> units = {{"token", kTokens}};
  for (int64_t tokens = 2; tokens < recording.Blocks().tokens; tokens *= 2) {
    units.emplace_back(fmt::format("{} tokens", tokens), CacheUnit{tokens});
  }
  units.emplace_back("block", recording.Blocks());
  units.emplace_back("cluster", kClusters);
  for (const auto& [name, unit] : units) {
    const UnitTrace trace = MakeUnitTrace(recording.heads, unit);
    for (const double size : kSizes) {
      const int64_t cache_bytes = recording.CacheBytes(size);
      const ReplayResult plain = Replay(trace, {.keep_step = false}, cache_bytes);
      const ReplayResult lru = Replay(trace, {ReplacementKind::kLru}, cache_bytes);
      const ReplayResult lazy = Replay(trace, {.touch_lazily = true}, cache_bytes);
      const ReplayResult slru = Replay(trace, {ReplacementKind::kSlru}, cache_bytes);
      const ReplayResult s3fifo = Replay(trace, {ReplacementKind::kS3Fifo}, cache_bytes);
      const ReplayResult belady = ReplayBelady(trace, cache_bytes);
      const auto each = [&](int64_t count) {
        return static_cast<double>(count) / recording.num_counted();
      };
      fmt::print(
          "{:>8} {:>6.1f} {:>7.1f} {:>5.1f}% |            {:>6.3f} {:>6.3f} {:>6.3f} {:>6.3f} "
          "{:>6.3f} {:>6.3f} |           {:>6.1f} {:>6.1f} |              {:>7.1f} {:>7.1f} "
          "{:>7.1f}\n",
          name, each(lru.num_reads), each(lru.bytes_read) / 1024, 100.0 * size, plain.hit_ratio(),
          lru.hit_ratio(), lazy.hit_ratio(), slru.hit_ratio(), s3fifo.hit_ratio(),
          belady.hit_ratio(), each(lru.num_requests), each(s3fifo.num_requests),
          KiB(lru.bytes_missed, recording), KiB(s3fifo.bytes_missed, recording),
          KiB(belady.bytes_missed, recording));
    }
  }
}

// One cache for all heads against equal parts of it, one a head.
void PrintShares(const Recording& recording) {
  fmt::print("\n{}, zones {}, blocks: one cache, and the same bytes in equal parts, one a head\n",
             recording.source, recording.zones);
  fmt::print("{:>6} | {:>6} {:>6} {:>6} | {:>6} {:>6} {:>6}\n", "size", "lru", "slru", "s3fifo",
             "lru/n", "slru/n", "s3f/n");
  const UnitTrace shared = MakeUnitTrace(recording.heads, recording.Blocks());
  std::vector<UnitTrace> parts;
  for (const RecordedHead& head : recording.heads) {
    parts.push_back(MakeUnitTrace({head}, recording.Blocks()));
  }
  for (const double size : kSizes) {
    const int64_t cache_bytes = recording.CacheBytes(size);
    fmt::print("{:>5.1f}% |", 100.0 * size);
    for (const ReplacementKind kind : kKinds) {
      fmt::print(" {:>6.3f}", Replay(shared, {kind}, cache_bytes).hit_ratio());
    }
    fmt::print(" |");
    for (const ReplacementKind kind : kKinds) {
      ReplayResult sum;
      for (const UnitTrace& part : parts) {
        sum.Add(Replay(part, {kind}, cache_bytes / static_cast<int64_t>(parts.size())));
      }
      fmt::print(" {:>6.3f}", sum.hit_ratio());
    }
    fmt::print("\n");
  }
}

// What fetching ahead costs and saves: blocks that the previous query ranked just beyond the cut.
void PrintHints(const Recording& recording) {
  fmt::print(
      "\n{}, zones {}, blocks, lru: fetching ahead what the last query ranked up to so many times "
      "as"
      " far as it read; KiB per query and head\n"
      "{:>6} {:>6} | {:>6} {:>8} | {:>6} {:>8} {:>8} {:>12}\n",
      recording.source, recording.zones, "size", "reach", "hits", "fetched", "hits", "fetched",
      "ahead", "saved/ahead");
  for (const double size : {0.05, 0.1, 0.25}) {
    for (size_t reach = 0; reach < std::size(kHintReaches); ++reach) {
      std::vector<RecordedHead> heads = recording.heads;
      for (size_t i = 0; i < heads.size(); ++i) heads[i].wider = recording.wider[reach][i];
      const UnitTrace trace = MakeUnitTrace(heads, recording.Blocks());
      const int64_t cache_bytes = recording.CacheBytes(size);
      const ReplayResult without = Replay(trace, {}, cache_bytes);
      const ReplayResult with = Replay(trace, {.use_hints = true}, cache_bytes);
      const double saved = static_cast<double>(without.bytes_missed - with.bytes_missed);
      fmt::print("{:>5.1f}% {:>6.2f} | {:>6.3f} {:>8.1f} | {:>6.3f} {:>8.1f} {:>8.1f} {:>12.3f}\n",
                 100.0 * size, kHintReaches[reach], without.hit_ratio(),
                 KiB(without.bytes_missed, recording), with.hit_ratio(),
                 KiB(with.bytes_missed, recording), KiB(with.bytes_hinted, recording),
                 with.bytes_hinted == 0 ? 0.0 : saved / static_cast<double>(with.bytes_hinted));
    }
  }
}

// A layer's look-ups when everything is resident: the bookkeeping that every hit pays.
void RunPinRelease(benchmark::State& state) {
  constexpr int64_t kBlocks = int64_t{1} << 18;
  constexpr int64_t kLookups = 15000;
  const auto cache = BlockCache::Create({.memory = {.num_slots = kBlocks, .slot_bytes = 64}});
  if (!cache.ok()) return state.SkipWithError(std::string(cache.status().message()).c_str());
  BlockTable table(kBlocks, 0, (*cache)->AddTenant({}).value());
  std::mt19937 random(1);
  // Slots in no order, as after many evictions.
  const std::vector<std::byte> bytes(64);
  std::vector<BlockCache::Missed> missed;
  for (int64_t block = 0; block < kBlocks; ++block) missed.push_back({&table, block, bytes.data()});
  std::shuffle(missed.begin(), missed.end(), random);
  (*cache)->Admit(0, missed);
  // Several layers' worth, so that no round finds what the last one left in the caches.
  std::vector<std::vector<int64_t>> rounds(16);
  for (std::vector<int64_t>& blocks : rounds) {
    for (int64_t i = 0; i < kLookups; ++i) {
      blocks.push_back(static_cast<int64_t>(random() % kBlocks));
    }
    std::sort(blocks.begin(), blocks.end());
  }
  std::vector<uint32_t> slots;
  slots.reserve(kLookups);
  uint32_t step = 0;
  for (auto _ : state) {
    ++step;
    slots.clear();
    for (const int64_t block : rounds[step % rounds.size()]) {
      const uint32_t slot = (*cache)->Pin(table, block, step);
      if (slot != BlockCache::kNoSlot) slots.push_back(slot);
    }
    const auto num_hits = static_cast<int64_t>(slots.size());
    (*cache)->CountLookups(table.tenant(), num_hits, kLookups - num_hits);
    (*cache)->Release(slots);
  }
  state.counters["per_block"] = benchmark::Counter(
      kLookups, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  (*cache)->Drop(table);
}

// Admission, each block in the place of another one, of slots divided among so many tenants.
void RunAdmit(benchmark::State& state) {
  constexpr int64_t kSlots = 1 << 16;
  constexpr int64_t kMisses = 64;  // in a call
  const auto cache = BlockCache::Create({.memory = {.num_slots = kSlots, .slot_bytes = 64}});
  if (!cache.ok()) return state.SkipWithError(std::string(cache.status().message()).c_str());
  const int64_t num_blocks = 2 * kSlots / state.range(0);  // of a tenant
  std::vector<std::unique_ptr<BlockTable>> tables;
  for (int64_t t = 0; t < state.range(0); ++t) {
    tables.push_back(
        std::make_unique<BlockTable>(num_blocks, t * num_blocks, (*cache)->AddTenant({}).value()));
  }
  const std::vector<std::byte> bytes(64);
  std::vector<BlockCache::Missed> missed(kMisses);
  uint32_t step = 0;
  int64_t next = 0;  // a circle through twice as many blocks as there are slots
  for (auto _ : state) {
    for (BlockCache::Missed& miss : missed) {
      BlockTable& table = *tables[next % state.range(0)];
      miss = {&table, next / state.range(0) % num_blocks, bytes.data()};
      ++next;
    }
    (*cache)->Admit(++step, missed);
  }
  state.counters["per_block"] = benchmark::Counter(
      kMisses, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  for (const auto& table : tables) (*cache)->Drop(*table);
}

class CacheBench {
 public:
  explicit CacheBench(const Arguments& arguments) : arguments_(arguments) {}

  absl::Status Prepare() {
    std::vector<std::unique_ptr<HeadSource>> sources;
    if (!arguments_.trace.empty()) {
      WAVEKV_ASSIGN_OR_RETURN(sources.emplace_back(), RecordedSource(arguments_.trace));
    }
    WAVEKV_ASSIGN_OR_RETURN(
        sources.emplace_back(),
        SyntheticSource(
            {synthetic::Sharpness::kSharp, synthetic::Sharpness::kMid, synthetic::Sharpness::kFlat},
            arguments_.tokens[0], arguments_.queries[0]));
    for (const auto& source : sources) {
      WAVEKV_ASSIGN_OR_RETURN(recordings_.emplace_back(),
                              Record(*source, AttendOptions(), "sketch"));
      WAVEKV_ASSIGN_OR_RETURN(recordings_.emplace_back(),
                              Record(*source, AttendOptions::Clusters(), "clusters"));
    }
    blocks_ = MakeUnitTrace(recordings_[0].heads, recordings_[0].Blocks());
    for (const ReplacementKind kind : kKinds) {
      benchmark::RegisterBenchmark(fmt::format("LookUp/{}", ReplacementKindName(kind)).c_str(),
                                   [this, kind](benchmark::State& state) { Run(state, kind); })
          ->Unit(benchmark::kMillisecond);
    }
    benchmark::RegisterBenchmark("PinRelease/slots:262144/blocks:15000", RunPinRelease)
        ->Unit(benchmark::kMicrosecond);
    benchmark::RegisterBenchmark("Admit/64", RunAdmit)
        ->ArgName("tenants")
        ->Arg(1)
        ->Arg(64)
        ->Arg(1024)
        ->Unit(benchmark::kMicrosecond);
    return absl::OkStatus();
  }

  void Print() const {
    for (const Recording& recording : recordings_) PrintHitRatios(recording);
    for (const Recording& recording : recordings_) PrintShares(recording);
    for (const Recording& recording : recordings_) PrintHints(recording);
    constexpr double kSize = 0.05;
    const UnitTrace clusters = MakeUnitTrace(recordings_[1].heads, kClusters);
    const int64_t cache_bytes = recordings_[0].CacheBytes(kSize);
    fmt::print("\ncache unit=block size_pct={}", 100.0 * kSize);
    for (const ReplacementKind kind : kKinds) {
      fmt::print(" {}={:.3f}", ReplacementKindName(kind),
                 Replay(blocks_, {kind}, cache_bytes).hit_ratio());
    }
    fmt::print(
        " belady={:.3f} cluster_lru={:.3f}\n", ReplayBelady(blocks_, cache_bytes).hit_ratio(),
        Replay(clusters, {ReplacementKind::kLru}, recordings_[1].CacheBytes(kSize)).hit_ratio());
  }

 private:
  void Run(benchmark::State& state, ReplacementKind kind) const {
    int64_t num_reads = 0;
    for (const Batch& batch : blocks_.batches) {
      num_reads += static_cast<int64_t>(batch.reads.size());
    }
    for (auto _ : state) {
      benchmark::DoNotOptimize(Replay(blocks_, {kind}, recordings_[0].CacheBytes(0.05)));
    }
    state.SetItemsProcessed(state.iterations() * num_reads);
  }

  const Arguments& arguments_;
  std::vector<Recording> recordings_;
  UnitTrace blocks_;
};

}  // namespace
}  // namespace wavekv::bench

int main(int argc, char** argv) {
  using namespace wavekv::bench;
  Arguments arguments;
  CacheBench bench(arguments);
  return BenchMain(
      argc, argv,
      {TextOption("trace", "file of recorded attention; none: synthetic heads alone",
                  &arguments.trace),
       NumbersOption("tokens", "context of the synthetic heads", 2048, int64_t{1} << 24,
                     &arguments.tokens),
       NumbersOption("queries", "consecutive queries of the synthetic heads", 4, 1024,
                     &arguments.queries)},
      [&] { return bench.Prepare(); }, [&](const Milliseconds&) { bench.Print(); });
}
