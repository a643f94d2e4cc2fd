// How times grow with the context, from a few measured ones.
#ifndef WAVEKV_BENCH_GROWTH_H_
#define WAVEKV_BENCH_GROWTH_H_

#include <cstdint>
#include <map>
#include <optional>

namespace wavekv::bench {

// Any unit of time by tokens of context.
using TimesByTokens = std::map<int64_t, double>;

// The exponent b of the power law t = a * N^b that fits best, by least squares of ln t over ln N.
// None for fewer than two contexts.
std::optional<double> GrowthExponent(const TimesByTokens& times);

// The smallest context of `dense` and `zones` from which on zones took less in all of them. None
// unless dense attention took less, or as much, in some context before it.
std::optional<int64_t> Crossover(const TimesByTokens& dense, const TimesByTokens& zones);

}  // namespace wavekv::bench

#endif  // WAVEKV_BENCH_GROWTH_H_
