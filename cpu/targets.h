// The instruction sets that the kernels are built for. Included before any of Highway's headers.
#ifndef WAVEKV_CPU_TARGETS_H_
#define WAVEKV_CPU_TARGETS_H_

// What every machine must have. Without this, a build without -march has the one-lane scalar target
// for a baseline, which lacks the shuffles that the kernels use. Better sets are found at run time.
#if defined(__x86_64__)
#define HWY_BASELINE_TARGETS HWY_SSE4
#endif

// Sets whose vectors have no size at compile time cannot stand in arrays of accumulators.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#endif  // WAVEKV_CPU_TARGETS_H_
