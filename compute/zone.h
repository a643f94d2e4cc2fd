#ifndef WAVEKV_COMPUTE_ZONE_H_
#define WAVEKV_COMPUTE_ZONE_H_

#include <cstdint>

namespace wavekv {

// How a query answers a cluster.
enum class Zone : uint8_t {
  kRetrieval = 0,   // its tokens are attended exactly
  kSketch = 1,      // its tokens are weighed by their codes, and the best of them attended exactly
  kEstimation = 2,  // its estimated mass times its own value mean
  kRemainder = 3,   // its estimated mass times the value mean of its super-cluster's remainder
  kIgnored = 4,     // not at all
};

}  // namespace wavekv

#endif  // WAVEKV_COMPUTE_ZONE_H_
