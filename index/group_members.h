// From "which cluster is this in" to "which are in this cluster".
#ifndef WAVEKV_INDEX_GROUP_MEMBERS_H_
#define WAVEKV_INDEX_GROUP_MEMBERS_H_

#include <cstdint>
#include <numeric>
#include <vector>

#include "absl/types/span.h"

namespace wavekv {

// CSR: group i holds members[offsets[i]] to members[offsets[i + 1] - 1], in ascending order. Groups
// may be empty.
struct Members {
  std::vector<uint32_t> offsets;
  std::vector<uint32_t> members;

  int64_t size(int64_t group) const { return offsets[group + 1] - offsets[group]; }
  absl::Span<const uint32_t> of(int64_t group) const {
    return {members.data() + offsets[group], static_cast<size_t>(size(group))};
  }
};

// REQUIRES: 0 <= assignment[i] < num_groups.
inline Members GroupMembers(absl::Span<const int32_t> assignment, int64_t num_groups) {
  Members groups;
  groups.offsets.assign(num_groups + 1, 0);
  for (const int32_t group : assignment) ++groups.offsets[group + 1];
  std::partial_sum(groups.offsets.begin(), groups.offsets.end(), groups.offsets.begin());
  std::vector<uint32_t> next(groups.offsets.begin(), groups.offsets.end() - 1);
  groups.members.resize(assignment.size());
  for (uint32_t i = 0; i < assignment.size(); ++i) groups.members[next[assignment[i]]++] = i;
  return groups;
}

}  // namespace wavekv

#endif  // WAVEKV_INDEX_GROUP_MEMBERS_H_
