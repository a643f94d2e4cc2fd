// Sums over rows and over their elements, whose order is the same for vectors of any length.
// Compiled once per instruction set.
#if defined(WAVEKV_CPU_ROW_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_ROW_SUMS_INL_H_
#undef WAVEKV_CPU_ROW_SUMS_INL_H_
#else
#define WAVEKV_CPU_ROW_SUMS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "wavekv/types.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Eight elements of a row, or as many of them as fit into a vector.
template <typename T>
using Tag = hn::CappedTag<T, kHeadDimStep>;

template <typename T>
inline constexpr int kLanes = static_cast<int>(hn::MaxLanes(Tag<T>()));

// Sum of term(j), vectors that begin at element j of a row. Eight partial sums, because one chain
// of additions would wait for each to finish; they are added up as Sum.
template <typename T, typename Sum = T, typename Term>
HWY_INLINE Sum SumOverRow(int64_t dim, const Term& term) {
  constexpr int kVectors = kHeadDimStep / kLanes<T>;
  const Tag<T> d;
  hn::Vec<Tag<T>> partial[kVectors];
  for (int v = 0; v < kVectors; ++v) partial[v] = hn::Zero(d);
  for (int64_t j = 0; j < dim; j += kHeadDimStep) {
    for (int v = 0; v < kVectors; ++v) {
      partial[v] = hn::Add(partial[v], term(j + v * kLanes<T>));
    }
  }
  HWY_ALIGN T parts[kHeadDimStep];
  for (int v = 0; v < kVectors; ++v) hn::Store(partial[v], d, parts + v * kLanes<T>);
  Sum sum = 0;
  for (const T part : parts) sum += part;
  return sum;
}

// AddRows() of kVectors vectors that begin at element j.
template <int kVectors, int kSums, typename Load>
HWY_INLINE void AddColumns(int64_t num_rows, int j, const Load& load,
                           double* const (&sums)[kSums]) {
  const Tag<double> d;
  hn::Vec<Tag<double>> total[kSums][kVectors];
  for (int s = 0; s < kSums; ++s) {
    for (int v = 0; v < kVectors; ++v) total[s][v] = hn::LoadU(d, sums[s] + j + v * kLanes<double>);
  }
  for (int64_t i = 0; i < num_rows; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      const auto x = load(i, j + v * kLanes<double>);
      for (int s = 0; s < kSums; ++s) total[s][v] = hn::Add(total[s][v], x);
    }
  }
  for (int s = 0; s < kSums; ++s) {
    for (int v = 0; v < kVectors; ++v) hn::StoreU(total[s][v], d, sums[s] + j + v * kLanes<double>);
  }
}

// Adds rows, one after the other, to each of the sums [dim]. load(i, j) is a vector of row i that
// begins at element j. Several columns at once, so that no addition waits for the one before.
template <int kSums, typename Load>
HWY_INLINE void AddRows(int dim, int64_t num_rows, const Load& load, double* const (&sums)[kSums]) {
  int j = 0;
  for (; j + 4 * kLanes<double> <= dim; j += 4 * kLanes<double>) {
    AddColumns<4>(num_rows, j, load, sums);
  }
  for (; j < dim; j += kLanes<double>) AddColumns<1>(num_rows, j, load, sums);
}

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
