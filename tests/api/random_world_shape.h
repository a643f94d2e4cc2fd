// Which engine a random world is built on.
#ifndef WAVEKV_TESTS_API_RANDOM_WORLD_SHAPE_H_
#define WAVEKV_TESTS_API_RANDOM_WORLD_SHAPE_H_

#include <cstdint>
#include <string>

#include "wavekv/options.h"

namespace wavekv::testing {

struct WorldShape {
  EngineOptions options;
  int num_tenants = 3;
  int num_sequences_max = 10;
  int64_t length_max = 900;  // no append goes beyond it by more than prompt_rows_max
  int64_t prompt_rows_max = 200;
};

// Small enough that a few hundred operations cut, seal, fork and exhaust everything. Dtypes, head
// dims, groups, segment sizes and threads come from the seed, and whether sealed rows lie in a
// file; builds run one after the other, so that a world that pauses them is repeatable.
WorldShape DrawShape(uint64_t seed);

// Everything that was drawn, in one line.
std::string ToString(const WorldShape& shape);

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_API_RANDOM_WORLD_SHAPE_H_
