#include "compute/list_greatest.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "tests/cpu/backend_fixture.h"

namespace wavekv::testing {
namespace {

constexpr uint32_t kUntouched = std::numeric_limits<uint32_t>::max();

class ListGreatestTest : public BackendFixture {
 protected:
  void ExpectGreatest(const std::vector<int32_t>& values, int64_t num_rows, int64_t num_listed) {
    const auto num_values = static_cast<int64_t>(values.size()) / num_rows;
    ForEachTarget([&] {
      std::vector<uint32_t> lists(num_rows * num_listed + 1, kUntouched);
      const ListGreatestTask task = {values.data(), num_rows, num_values, num_listed, lists.data()};
      ASSERT_TRUE(backend().ListGreatest({&task, 1}).ok());
      for (int64_t r = 0; r < num_rows; ++r) {
        const int32_t* const row = values.data() + r * num_values;
        std::vector<uint32_t> places(num_values);
        std::iota(places.begin(), places.end(), 0u);
        std::stable_sort(places.begin(), places.end(),
                         [&](uint32_t a, uint32_t b) { return row[a] > row[b]; });
        std::sort(places.begin(), places.begin() + num_listed);
        ASSERT_TRUE(std::equal(places.begin(), places.begin() + num_listed, &lists[r * num_listed]))
            << "row " << r << ", " << num_listed << " of " << num_values;
      }
      EXPECT_EQ(lists.back(), kUntouched);
    });
  }
};

TEST_F(ListGreatestTest, ListsThoseThatASortListsFirst) {
  Random random(51);
  WAVEKV_TRACE_SEED(random);
  for (const int64_t num_values : {1, 2, 3, 15, 16, 17, 33, 128, 500, 521}) {
    for (const int32_t largest : {0, 1, 3, 1000, 1 << 29}) {
      constexpr int64_t kRows = 3;
      std::vector<int32_t> values(kRows * num_values);
      for (int32_t& value : values) {
        value = static_cast<int32_t>(random.Integer(-largest, largest));
      }
      for (const int64_t num_listed : {int64_t{1}, num_values / 3, num_values - 1, num_values}) {
        if (num_listed >= 1) ExpectGreatest(values, kRows, num_listed);
      }
    }
  }
}

TEST_F(ListGreatestTest, OfEqualValuesThoseThatComeFirst) {
  std::vector<int32_t> values(100, -7);
  values[90] = 5;
  ExpectGreatest(values, 1, 4);  // 0, 1, 2 and 90
}

}  // namespace
}  // namespace wavekv::testing
