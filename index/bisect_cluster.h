// Cuts a cluster in two where it is widest.
#ifndef WAVEKV_INDEX_BISECT_CLUSTER_H_
#define WAVEKV_INDEX_BISECT_CLUSTER_H_

#include <cstdint>

#include "absl/types/span.h"

namespace wavekv {

struct Bisection {
  int64_t cut = 0;    // members of the first half
  float gain = 0.0f;  // by how much the sum of squared distances to the mean falls, about
};

// Rearranges `members` into two halves by Euclidean 2-means started from a far pair. Each half is
// in ascending order, is not empty and holds at least an eighth of the members (rounded down), so
// repeated cuts of any cluster are logarithmically deep even if its points are one outlier beyond
// the other. Points that cannot be told apart are halved by order.
//
// Shapes: points [.., dim] fp32 dense, dim a multiple of kHeadDimStep; members: rows of it, at
// least two, ascending. The same input gives the same result on every machine.
Bisection BisectCluster(const float* points, int dim, absl::Span<uint32_t> members);

}  // namespace wavekv

#endif  // WAVEKV_INDEX_BISECT_CLUSTER_H_
