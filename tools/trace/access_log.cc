#include "tools/trace/access_log.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// The segments that these clusters make up, by their first tokens.
std::vector<HeadAccesses::Segment> SegmentsOf(std::vector<RankedCluster> clusters) {
  std::sort(clusters.begin(), clusters.end(), [](const RankedCluster& a, const RankedCluster& b) {
    return std::pair(a.segment_begin, a.cluster) < std::pair(b.segment_begin, b.cluster);
  });
  std::vector<HeadAccesses::Segment> segments;
  for (const RankedCluster& cluster : clusters) {
    if (segments.empty() || segments.back().first_token != cluster.segment_begin) {
      segments.push_back({cluster.segment_begin, {}});
    }
    segments.back().cluster_tokens.push_back(cluster.num_tokens);
  }
  return segments;
}

}  // namespace

BlockShape BlockShapeOf(int64_t token_bytes) {
  constexpr int64_t kBlockBytes = 4096;
  constexpr int64_t kTransferBytes = 512;
  BlockShape shape;
  shape.token_bytes = token_bytes;
  shape.block_tokens = std::max<int64_t>(1, kBlockBytes / token_bytes);
  shape.block_bytes = RoundUp(shape.block_tokens * token_bytes, kTransferBytes);
  return shape;
}

int64_t StoredTokenBytes(const TraceHead& head, const TraceEvalOptions& options) {
  const bool one_dtype = head.keys.dtype == head.values.dtype;
  const DType dtype = options.kv_dtype.value_or(one_dtype ? head.keys.dtype : DType::kFloat32);
  return (RoundUp(head.head_dim_k, kHeadDimStep) +
          RoundUp(head.values.row_elements, kHeadDimStep)) *
         DTypeBytes(dtype);
}

AccessRecorder::AccessRecorder(const TraceHead& head, TraceEvalOptions& options)
    : head_(head), accesses_(options.budgets.size()) {
  options.on_retrieved =
      [this](int64_t query, size_t budget, const std::vector<RankedCluster>& sealed,
             const RetrievedTokens& retrieved) { Add(query, budget, sealed, retrieved); };
}

void AccessRecorder::Add(int64_t query, size_t budget, const std::vector<RankedCluster>& sealed,
                         const RetrievedTokens& retrieved) {
  HeadAccesses& accesses = accesses_[budget];
  // A segment that replaces others may begin where one of them did, so it is known by its clusters.
  std::map<int64_t, uint32_t> numbers;  // by first token
  for (HeadAccesses::Segment& segment : SegmentsOf(sealed)) {
    const auto known = std::find_if(accesses.segments.begin(), accesses.segments.end(),
                                    [&](const HeadAccesses::Segment& other) {
                                      return other.first_token == segment.first_token &&
                                             other.cluster_tokens == segment.cluster_tokens;
                                    });
    numbers[segment.first_token] = static_cast<uint32_t>(known - accesses.segments.begin());
    if (known == accesses.segments.end()) accesses.segments.push_back(std::move(segment));
  }
  HeadAccesses::Query& asked = accesses.queries.emplace_back();
  asked.number = query;
  asked.position = head_.positions[query];
  auto place = retrieved.places.begin();
  for (const RankedCluster& cluster : retrieved.clusters) {
    const uint32_t segment = numbers.at(cluster.segment_begin);
    for (int64_t i = 0; i < cluster.num_read; ++i) {
      asked.reads.push_back(
          {segment, static_cast<uint32_t>(cluster.cluster), static_cast<uint32_t>(*place++)});
    }
  }
}

absl::StatusOr<std::vector<HeadAccesses>> RecordAccesses(const TraceHead& head,
                                                         TraceEvalOptions options) {
  AccessRecorder recorder(head, options);
  WAVEKV_RETURN_IF_ERROR(EvaluateHead(head, options).status());
  return recorder.Take();
}

std::string FormatAccesses(const HeadAccesses& accesses, const BlockShape& shape) {
  std::string text;
  for (size_t i = 0; i < accesses.segments.size(); ++i) {
    const HeadAccesses::Segment& segment = accesses.segments[i];
    absl::StrAppend(&text, "segment ", i, " ", segment.first_token, " ",
                    absl::StrJoin(segment.cluster_tokens, ","), "\n");
  }
  for (const HeadAccesses::Query& query : accesses.queries) {
    absl::StrAppend(&text, "query ", query.number, " ", query.position);
    const HeadAccesses::TokenRead* last = nullptr;
    for (const HeadAccesses::TokenRead& read : query.reads) {
      const bool same_cluster =
          last != nullptr && last->segment == read.segment && last->cluster == read.cluster;
      const int64_t block = read.place / shape.block_tokens;
      if (!same_cluster) {
        absl::StrAppend(&text, " ", read.segment, ".", read.cluster, ":", block);
      } else if (last->place / shape.block_tokens != block) {
        absl::StrAppend(&text, ",", block);
      }
      last = &read;
    }
    text.push_back('\n');
  }
  return text;
}

}  // namespace wavekv
