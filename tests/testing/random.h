// Random tensors from a printed seed.
#ifndef WAVEKV_TESTS_TESTING_RANDOM_H_
#define WAVEKV_TESTS_TESTING_RANDOM_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "storage/float16.h"

namespace wavekv::testing {

// The seed of a test: its own, so that tests may be run alone and in any order, and printed with
// every failure through WAVEKV_TRACE_SEED.
class Random {
 public:
  explicit Random(uint64_t seed) : seed_(seed), engine_(seed) {}

  uint64_t seed() const { return seed_; }

  // Uniform in [low, high].
  int64_t Integer(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  float Gaussian(float deviation = 1.0f) {
    return std::normal_distribution<float>(0.0f, deviation)(engine_);
  }
  std::vector<float> Gaussians(int64_t count, float deviation = 1.0f) {
    std::vector<float> values(count);
    for (float& value : values) value = Gaussian(deviation);
    return values;
  }
  std::mt19937_64& engine() { return engine_; }

 private:
  const uint64_t seed_;
  std::mt19937_64 engine_;
};

// Names the seed in every failure of the enclosing scope.
#define WAVEKV_TRACE_SEED(random) SCOPED_TRACE(::testing::Message() << "seed " << (random).seed())

// The bytes of `values` as `dtype`.
inline std::vector<std::byte> Encode(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * DTypeBytes(dtype));
  for (size_t i = 0; i < values.size(); ++i) StoreElement(bytes.data(), dtype, i, values[i]);
  return bytes;
}

inline std::vector<float> Decode(const std::byte* bytes, DType dtype, int64_t count) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = LoadElement(bytes, dtype, i);
  return values;
}

// `values` rounded to `dtype`.
inline std::vector<float> Rounded(const std::vector<float>& values, DType dtype) {
  return Decode(Encode(values, dtype).data(), dtype, values.size());
}

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_TESTING_RANDOM_H_
