#include "cpu/estimate_parts.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace wavekv::cpu {
namespace {

// Calls visit(i) for the bytes of [0, count) that are not `common`, in order. Few are, so eight are
// looked at at once.
template <typename Visit>
void ForEachOther(const uint8_t* bytes, int64_t count, uint8_t common, const Visit& visit) {
  const uint64_t all_common = 0x0101010101010101u * common;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, sizeof(word));
    word ^= all_common;
    while (word != 0) {
      const int byte = std::countr_zero(word) / 8;
      visit(i + byte);
      word &= ~(uint64_t{0xff} << (8 * byte));
    }
  }
  for (; i < count; ++i) {
    if (bytes[i] != common) visit(i);
  }
}

}  // namespace

void EstimateParts::Load(const EstimateClustersTask& task) {
  const ClusterIndex& index = *task.index;
  ListParts(task);
  chosen.Load(task.chosen, num_tokens);
  num_taken = chosen.Count(0, num_tokens);
  ListMeans(index);

  const int64_t num_batches = (task.num_queries + kBatch - 1) / kBatch;
  cluster_masses.resize((index.num_clusters + kPadding) * kBatch);
  part_weights.resize(parts.size() * kBatch);
  cluster_weights.resize(num_batches * cluster_stride() * kBatch);
  super_weights.resize(num_batches * super_stride() * kBatch);
  taken_weights.resize(num_batches * taken_stride() * kBatch);
  sums.assign(num_batches * kBatch, Sums());
}

void EstimateParts::ListParts(const EstimateClustersTask& task) {
  const ClusterIndex& index = *task.index;
  parts.clear();
  answered.assign(index.num_clusters + kPadding, 1.0f);
  std::fill_n(answered.begin() + index.num_clusters, kPadding, 0.0f);
  num_tokens = 0;
  ForEachOther(reinterpret_cast<const uint8_t*>(task.zones), index.num_clusters,
               static_cast<uint8_t>(Zone::kRemainder), [&](int64_t cluster) {
                 // In place: a part that is put together elsewhere is waited for where it is
                 // copied.
                 Part& part = parts.emplace_back();
                 part.cluster = static_cast<uint32_t>(cluster);
                 part.zone = task.zones[cluster];
                 part.first_token = num_tokens;
                 part.size = index.cluster_size(cluster);
                 if (part.zone == Zone::kSketch) num_tokens += part.size;
                 if (part.zone != Zone::kEstimation) answered[cluster] = 0.0f;
               });
}

void EstimateParts::ListMeans(const ClusterIndex& index) {
  clusters.clear();
  supers.clear();
  all_supers.resize(index.num_supers);
  uint32_t next_part = 0;
  const auto num_parts = static_cast<uint32_t>(parts.size());
  for (int64_t s = 0; s < index.num_supers; ++s) {
    Super& super = all_supers[s];
    const uint32_t first = index.super_offsets[s], last = index.super_offsets[s + 1];
    super.first_part = next_part;
    const int64_t size = index.super_size(s);
    super.remainder_tokens = size;
    for (; next_part < num_parts && parts[next_part].cluster < last; ++next_part) {
      super.remainder_tokens -= parts[next_part].size;
    }
    super.end_part = next_part;
    super.remainder = super.end_part == super.first_part  ? Remainder::kWhole
                      : super.remainder_tokens == 0       ? Remainder::kNone
                      : 2 * super.remainder_tokens < size ? Remainder::kOwnMeans
                                                          : Remainder::kSuperMean;
    const size_t num_listed = clusters.size();
    for (uint32_t p = super.first_part; p < super.end_part; ++p) {
      Part& part = parts[p];
      const bool answers = part.zone == Zone::kSketch || part.zone == Zone::kEstimation;
      part.has_mean = answers || super.remainder == Remainder::kSuperMean;
      if (part.has_mean) clusters.push_back(part.cluster);
    }
    if (super.remainder == Remainder::kOwnMeans) {
      uint32_t cluster = first;
      for (uint32_t p = super.first_part; p < super.end_part; ++p) {
        for (; cluster < parts[p].cluster; ++cluster) clusters.push_back(cluster);
        ++cluster;
      }
      for (; cluster < last; ++cluster) clusters.push_back(cluster);
    }
    super.has_mean = super.remainder == Remainder::kWhole ||
                     super.remainder == Remainder::kSuperMean || clusters.size() > num_listed;
    if (super.has_mean) supers.push_back(static_cast<uint32_t>(s));
  }
}

}  // namespace wavekv::cpu
