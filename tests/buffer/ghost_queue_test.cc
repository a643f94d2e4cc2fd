#include "buffer/ghost_queue.h"

#include <algorithm>
#include <deque>
#include <set>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace wavekv {
namespace {

using testing::Random;

TEST(GhostQueueTest, HoldsWhatWasAddedLastAndNotTakenOut) {
  Random random(1);
  WAVEKV_TRACE_SEED(random);
  for (const uint32_t capacity : {1u, 2u, 3u, 64u, 100u}) {
    GhostQueue ghosts(capacity);
    std::deque<uint32_t> model;  // 0: taken out
    for (int i = 0; i < 50'000; ++i) {
      const auto fingerprint = static_cast<uint32_t>(random.Integer(1, 3 * capacity));
      if (random.Integer(0, 1) == 0) {
        ghosts.Add(fingerprint);
        model.push_back(fingerprint);
        if (model.size() > capacity) model.pop_front();
        continue;
      }
      // Of several equal ones, the newest.
      const auto found = std::find(model.rbegin(), model.rend(), fingerprint);
      ASSERT_EQ(ghosts.Take(fingerprint), found != model.rend());
      if (found != model.rend()) *found = 0;
    }
  }
}

TEST(GhostQueueTest, FingerprintsAreNeverZeroAndOfNeighboursDiffer) {
  std::set<uint32_t> seen;
  for (uint64_t key = 0; key < 10'000; ++key) seen.insert(KeyFingerprint(key));
  EXPECT_GE(seen.size(), 9'999u);
  EXPECT_EQ(seen.count(0), 0u);
}

}  // namespace
}  // namespace wavekv
