// Cuts a cluster in two where it is widest.
#ifndef WAVEKV_INDEX_BISECT_CLUSTER_H_
#define WAVEKV_INDEX_BISECT_CLUSTER_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/backend.h"

namespace wavekv {

// Rearranges `members` into two halves by Euclidean 2-means started from a far pair, and returns
// the size of the first half. Each half is in ascending order, is not empty and holds at least an
// eighth of the members (rounded down), so repeated cuts of any cluster are logarithmically deep
// even if its points are one outlier beyond the other. Points that cannot be told apart are halved
// by order.
//
// Shapes: points [.., dim] fp32 dense; members: rows of it, at least two, ascending. Errors: those
// of the backend.
absl::StatusOr<int64_t> BisectCluster(const float* points, int dim, absl::Span<uint32_t> members,
                                      Backend& backend);

}  // namespace wavekv

#endif  // WAVEKV_INDEX_BISECT_CLUSTER_H_
