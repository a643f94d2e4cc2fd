#include "bench/unit_trace.h"

#include <algorithm>
#include <map>
#include <utility>

namespace wavekv::bench {
namespace {

// Numbers the units of all heads from 0.
class UnitNumbers {
 public:
  UnitNumbers(const std::vector<RecordedHead>& heads, CacheUnit unit, UnitTrace& trace)
      : unit_(unit) {
    for (const RecordedHead& head : heads) {
      auto& segments = first_units_.emplace_back();
      for (const HeadAccesses::Segment& segment : head.reads.segments) {
        auto& clusters = segments.emplace_back();
        for (const int64_t num_tokens : segment.cluster_tokens) {
          clusters.push_back(static_cast<uint32_t>(trace.unit_bytes.size()));
          AddCluster(head.shape, num_tokens, trace.unit_bytes);
        }
      }
    }
  }

  // The units of a query, each once, in the order of the reads.
  std::vector<uint32_t> UnitsOf(size_t head, const HeadAccesses::Query& query) const {
    std::vector<uint32_t> units;
    for (const HeadAccesses::TokenRead& read : query.reads) {
      uint32_t unit = first_units_[head][read.segment][read.cluster];
      if (unit_.tokens > 0) unit += static_cast<uint32_t>(read.place / unit_.tokens);
      // Places ascend within a cluster, so a unit's reads follow one another.
      if (units.empty() || units.back() != unit) units.push_back(unit);
    }
    return units;
  }

 private:
  void AddCluster(const BlockShape& shape, int64_t num_tokens, std::vector<int32_t>& bytes) const {
    if (unit_.tokens == 0) {
      bytes.push_back(static_cast<int32_t>(shape.num_blocks(num_tokens) * shape.block_bytes));
      return;
    }
    const int64_t unit_bytes =
        unit_.tokens == shape.block_tokens ? shape.block_bytes : unit_.tokens * shape.token_bytes;
    bytes.insert(bytes.end(), (num_tokens + unit_.tokens - 1) / unit_.tokens,
                 static_cast<int32_t>(unit_bytes));
  }

  const CacheUnit unit_;
  std::vector<std::vector<std::vector<uint32_t>>> first_units_;  // [head][segment][cluster]
};

// One of each list in turn.
std::vector<uint32_t> TakeTurns(const std::vector<std::vector<uint32_t>>& lists) {
  std::vector<uint32_t> merged;
  size_t longest = 0;
  for (const auto& list : lists) longest = std::max(longest, list.size());
  for (size_t i = 0; i < longest; ++i) {
    for (const auto& list : lists) {
      if (i < list.size()) merged.push_back(list[i]);
    }
  }
  return merged;
}

}  // namespace

int64_t AllBlocksBytes(const std::vector<RecordedHead>& heads) {
  int64_t bytes = 0;
  for (const RecordedHead& head : heads) {
    for (const HeadAccesses::Segment& segment : head.reads.segments) {
      for (const int64_t num_tokens : segment.cluster_tokens) {
        bytes += head.shape.num_blocks(num_tokens) * head.shape.block_bytes;
      }
    }
  }
  return bytes;
}

UnitTrace MakeUnitTrace(const std::vector<RecordedHead>& heads, CacheUnit unit) {
  UnitTrace trace;
  if (heads.empty()) return trace;
  const UnitNumbers numbers(heads, unit, trace);
  std::map<int64_t, std::vector<size_t>> layers;
  for (size_t head = 0; head < heads.size(); ++head) layers[heads[head].layer].push_back(head);
  const size_t num_queries = heads[0].reads.queries.size();
  for (size_t query = 0; query < num_queries; ++query) {
    for (const auto& [layer, members] : layers) {
      std::vector<std::vector<uint32_t>> reads, hints;
      for (const size_t head : members) {
        reads.push_back(numbers.UnitsOf(head, heads[head].reads.queries[query]));
        if (heads[head].wider.queries.empty()) continue;
        std::vector<uint32_t> read = reads.back();
        std::sort(read.begin(), read.end());
        std::vector<uint32_t>& beyond = hints.emplace_back();
        for (const uint32_t wide : numbers.UnitsOf(head, heads[head].wider.queries[query])) {
          if (!std::binary_search(read.begin(), read.end(), wide)) beyond.push_back(wide);
        }
      }
      trace.batches.push_back({TakeTurns(reads), TakeTurns(hints), static_cast<int64_t>(query),
                               query >= num_queries / 4});
    }
  }
  return trace;
}

}  // namespace wavekv::bench
