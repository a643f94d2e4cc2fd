#ifndef WAVEKV_COMPUTE_WRITE_INDEX_H_
#define WAVEKV_COMPUTE_WRITE_INDEX_H_

#include <cstdint>

#include "absl/types/span.h"
#include "storage/cluster_index.h"
#include "storage/kv_range.h"

namespace wavekv {

class Backend;

// The second half of sealing a segment, for one kv head: copies its rows into an index in cluster
// order, byte for byte, and computes every section of it (storage/cluster_index.h says what stands
// where).
//
// Shapes: `rows`, numbered in the order given, are out.num_tokens; offsets [out.num_clusters + 1]
// and members [out.num_tokens] name the rows of each cluster (CSR), super_offsets [out.num_supers +
// 1] the clusters of each super-cluster. None is empty. Rows are finite. `out` was formatted, and
// all positions lie in [out.position_begin, out.position_begin + kSegmentTokensMax).
//
// Statistics come from the stored rows: differences and squares in fp32, or in double where the
// largest element would take them out of its range; sums over rows in double. Spreads and codes
// refer to the means as stored, that is after rounding. Order: sums over a row's elements are those
// of 8 interleaved partial sums, over rows one by one, and no product is fused with an addition, so
// the bytes do not depend on which vector instructions a machine has.
struct WriteIndexTask {
  absl::Span<const KvRange> rows;
  const uint32_t* offsets = nullptr;
  const uint32_t* members = nullptr;
  const uint32_t* super_offsets = nullptr;
  MutableClusterIndex out;
  // Its Yield() is called within the task, by the thread that runs it; nullptr: nobody's.
  Backend* yields_to = nullptr;
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_WRITE_INDEX_H_
