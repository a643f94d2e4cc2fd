// The vocabulary every layer shares: element types, LSE bases, memory kinds.
#ifndef WAVEKV_STORAGE_TYPES_H_
#define WAVEKV_STORAGE_TYPES_H_

#include <cstddef>
#include <cstdint>

namespace wavekv {

// Element types of keys, values, queries and outputs. Arithmetic is fp32 whatever the type.
enum class DType : uint8_t { kFloat32 = 1, kFloat16 = 2, kBFloat16 = 3 };

// Bytes of one element; 0 for a value that is not an enumerator.
constexpr int64_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 4;
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
  }
  return 0;
}

// "fp32", "fp16", "bf16", or "unknown".
constexpr const char* DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "fp32";
    case DType::kFloat16:
      return "fp16";
    case DType::kBFloat16:
      return "bf16";
  }
  return "unknown";
}

// Where a tensor's bytes lie. kDevice: on the device of a Device::kCuda engine.
enum class Memory : uint8_t { kHost = 1, kPinnedHost = 2, kDevice = 3 };

// Base of the logarithm in a log-sum-exp. FlashAttention, vLLM and SGLang use e; FlashInfer uses 2.
enum class LseBase : uint8_t { kE = 1, k2 = 2 };

// How the softmax mass of a cluster is estimated from its statistics.
enum class MassEstimate : uint8_t {
  // n e^{q.c}: never exceeds the true mass (Jensen), so log-sum-exps are lower bounds.
  kLowerBound = 1,
  // Times e^{min(x / 2, 3)}, x the variance of the cluster's logits if its keys spread alike in all
  // directions:
  // nearer to the truth on average, and no bound.
  kSecondOrder = 2,
};

// Which parts of the sealed tokens a query reads, and what stands for the others; AttendOptions and
// docs/wave_index.md say more.
enum class Zones : uint8_t {
  kPaper = 1,     // as published: clusters exactly, clusters by their means, the others not at all
  kClusters = 2,  // the same, and the others by their masses and the means of super-clusters
  kSketch = 3,    // single tokens exactly, chosen by their codes; by codes; by means
};

// How centroids and value means are stored. Integers have a scale per row; docs/wave_index.md says
// what each is worth.
enum class StatisticsFormat : uint8_t { kFloat32 = 1, kInt8 = 2, kInt4 = 3 };

// "fp32", "int8", "int4", or "unknown".
constexpr const char* StatisticsFormatName(StatisticsFormat format) {
  switch (format) {
    case StatisticsFormat::kFloat32:
      return "fp32";
    case StatisticsFormat::kInt8:
      return "int8";
    case StatisticsFormat::kInt4:
      return "int4";
  }
  return "unknown";
}

// Which machine computes.
enum class Device : uint8_t { kCpu = 1, kCuda = 2 };

// head_dim is a multiple of kHeadDimStep and at most kHeadDimMax.
inline constexpr int kHeadDimStep = 8;
inline constexpr int kHeadDimMax = 576;  // keys of multi-head latent attention, seen as one kv head

}  // namespace wavekv

#endif  // WAVEKV_STORAGE_TYPES_H_
