// Products of queries with rows of small integers. Compiled once per instruction set.
#if defined(WAVEKV_CPU_INTEGER_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WAVEKV_CPU_INTEGER_ROWS_INL_H_
#undef WAVEKV_CPU_INTEGER_ROWS_INL_H_
#else
#define WAVEKV_CPU_INTEGER_ROWS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "cpu/byte_products-inl.h"
#include "cpu/row_kernels-inl.h"
#include "hwy/highway.h"
#include "storage/cluster_index.h"
#include "storage/statistics_row.h"
#include "wavekv/instruction_sets.h"

HWY_BEFORE_NAMESPACE();
namespace wavekv::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Some queries as integers of 15 bits, in the order in which rows are unpacked. Products of
// integers are exact; a query's element is rounded by at most its greatest magnitude / 32766.
class IntegerQueries {
 public:
  static constexpr int kBatch = 4;
  using Numbers = hn::Vec<hn::FixedTag<float, kBatch>>;  // one for each query

  // The queries [count, dim]; zeros stand in for those missing to kBatch. `format`: of the rows.
  void Load(const float* queries, int count, int dim, StatisticsFormat format) {
    is_int4_ = format == StatisticsFormat::kInt4;
#if WAVEKV_INTEGER_PRODUCTS
    by_bytes_ = UsesIntegerProducts();
#endif
    // An int4 row is unpacked to a vector of its first half and one of its second half in turn.
    const int parts = is_int4_ ? 2 : 1;
    const int part = dim / parts;
    num_vectors_ = (part + kLanes - 1) / kLanes * parts;
    for (int q = 0; q < kBatch; ++q) {
      alignas(64) int16_t integers[kHeadDimMax];
      std::fill_n(integers, dim, int16_t{0});
      steps_[q] = q < count ? Round(queries + q * dim, dim, integers) : 0.0f;
      offsets_[q] = 0;
#if WAVEKV_INTEGER_PRODUCTS
      if (by_bytes_) {
        bytes_.Load(q, integers, dim, is_int4_);
        for (int i = 0; i < dim; ++i) offsets_[q] += (is_int4_ ? 8 : 128) * integers[i];
        continue;
      }
#endif
      std::fill_n(elements_[q], num_vectors_ * kLanes, int16_t{0});
      if (steps_[q] == 0.0f) continue;
      for (int i = 0; i < part; i += kLanes) {
        for (int p = 0; p < parts; ++p) {
          std::copy_n(integers + p * part + i, std::min(kLanes, part - i),
                      elements_[q] + i * parts + p * kLanes);
        }
      }
      if (!is_int4_) continue;
      for (int i = 0; i < dim; ++i) offsets_[q] += 8 * integers[i];
    }
  }

  // products [count, kBatch] with the rows from `first` on. Room for a multiple of four rows; reads
  // up to a vector behind rows and scales, where other sections of an index stand.
  void Multiply(const StatisticsRows& rows, int64_t first, int count, float* products) const {
#if WAVEKV_INTEGER_PRODUCTS
    if (by_bytes_) {
      return is_int4_
                 ? MultiplyBytes<true>(bytes_, steps_, offsets_, rows, first, count, products)
                 : MultiplyBytes<false>(bytes_, steps_, offsets_, rows, first, count, products);
    }
#endif
    is_int4_ ? MultiplyRows</*kInt4=*/true>(rows, first, count, products)
             : MultiplyRows</*kInt4=*/false>(rows, first, count, products);
  }

 private:
  using Shorts = hn::ScalableTag<int16_t>;
  using Words = hn::Repartition<int32_t, Shorts>;
  static constexpr int kLanes = hn::MaxLanes(Shorts());
  static constexpr int kElementsMax = kHeadDimMax + 2 * kLanes;
  // Sums of products with 8 bits stay within 32.
  static constexpr float kMost = 16383.0f;
  static_assert(int64_t{16383} * 128 * kHeadDimMax < int64_t{1} << 31);
  // What is less than that times any mean is nothing beside a logarithm.
  static constexpr float kLeast = 1e-30f;

  // Returns the step, 0 for a query that is nearly nothing.
  static float Round(const float* query, int dim, int16_t* integers) {
    const hn::CappedTag<float, 8> d;  // divides every dim
    const hn::RebindToSigned<decltype(d)> d32;
    const hn::Rebind<int16_t, decltype(d)> d16;
    const int n = static_cast<int>(hn::Lanes(d));
    auto magnitudes = hn::Zero(d);
    for (int i = 0; i < dim; i += n) {
      magnitudes = hn::Max(magnitudes, hn::Abs(hn::LoadU(d, query + i)));
    }
    const float most = hn::GetLane(hn::MaxOfLanes(d, magnitudes));
    if (most < kLeast) return 0.0f;
    const auto inverse = hn::Set(d, kMost / most);
    for (int i = 0; i < dim; i += n) {
      const auto rounded = hn::NearestInt(hn::Mul(hn::LoadU(d, query + i), inverse));
      hn::StoreU(hn::DemoteTo(d16, hn::BitCast(d32, rounded)), d16, integers + i);
    }
    return most / kMost;
  }

  template <bool kInt4>
  void MultiplyRows(const StatisticsRows& rows, int64_t first, int count, float* products) const {
    const hn::FixedTag<float, kBatch> d;
    const Numbers steps = hn::Load(d, steps_);
    const auto store = [&](int i, Numbers sums) HWY_ATTR {
      const Numbers scale = hn::Set(d, rows.scale(first + i));
      hn::StoreU(hn::Mul(hn::Mul(sums, steps), scale), d, products + i * kBatch);
    };
    int i = 0;
    for (; i + 2 <= count; i += 2) {
      Numbers sums[2];
      Sum<kInt4, 2>(rows.row(first + i), rows.row_bytes, sums);
      store(i, sums[0]);
      store(i + 1, sums[1]);
    }
    if (i < count) {
      Numbers sums[1];
      Sum<kInt4, 1>(rows.row(first + i), rows.row_bytes, sums);
      store(i, sums[0]);
    }
  }

  // sums[r] = products with the row at `row` + r * row_bytes.
  template <bool kInt4, int kRows>
  HWY_INLINE void Sum(const std::byte* row, int64_t row_bytes, Numbers* sums) const {
    const Shorts d16;
    const Words d32;
    const hn::Rebind<uint8_t, Shorts> du8;
    const hn::Rebind<int8_t, Shorts> d8;
    using V16 = hn::Vec<Shorts>;
    hn::Vec<Words> acc[kRows][kBatch], more[kRows][kBatch];
    HWY_UNROLL(2)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(4)
      for (int q = 0; q < kBatch; ++q) acc[r][q] = more[r][q] = hn::Zero(d32);
    }
    const auto add = [&](int vector, const V16* elements) HWY_ATTR {
      HWY_UNROLL(4)
      for (int q = 0; q < kBatch; ++q) {
        const V16 query = hn::Load(d16, elements_[q] + vector * kLanes);
        HWY_UNROLL(2)
        for (int r = 0; r < kRows; ++r) {
          acc[r][q] = hn::ReorderWidenMulAccumulate(d32, elements[r], query, acc[r][q], more[r][q]);
        }
      }
    };
    for (int v = 0; v < num_vectors_; v += kInt4 ? 2 : 1) {
      const std::byte* at = row + v / (kInt4 ? 2 : 1) * kLanes;
      V16 first[kRows], second[kRows];
      HWY_UNROLL(2)
      for (int r = 0; r < kRows; ++r) {
        if constexpr (kInt4) {
          const auto* bytes = reinterpret_cast<const uint8_t*>(at + r * row_bytes);
          const V16 both = hn::PromoteTo(d16, hn::LoadU(du8, bytes));
          first[r] = hn::And(both, hn::Set(d16, 15));
          second[r] = hn::ShiftRight<4>(both);
        } else {
          const auto* bytes = reinterpret_cast<const int8_t*>(at + r * row_bytes);
          first[r] = hn::PromoteTo(d16, hn::LoadU(d8, bytes));
        }
      }
      add(v, first);
      if constexpr (kInt4) add(v + 1, second);
    }
    const hn::FixedTag<int32_t, kBatch> di;
    const auto offsets = hn::Load(di, offsets_);
    HWY_UNROLL(2)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(4)
      for (int q = 0; q < kBatch; ++q) acc[r][q] = hn::Add(acc[r][q], more[r][q]);
      sums[r] =
          hn::ConvertTo(hn::FixedTag<float, kBatch>(), hn::Sub(SumsOfFour(d32, acc[r]), offsets));
    }
  }

  bool is_int4_ = false;
#if WAVEKV_INTEGER_PRODUCTS
  bool by_bytes_ = false;
  ByteQueries bytes_;
#endif
  int num_vectors_ = 0;
  alignas(16) float steps_[kBatch];
  alignas(16) int32_t offsets_[kBatch];  // what rows that are multiplied without a sign add
  alignas(64) int16_t elements_[kBatch][kElementsMax];
};

}  // namespace wavekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
