// The definition of attention that everything is compared with.
#ifndef WAVEKV_TESTS_TESTING_NAIVE_ATTENTION_H_
#define WAVEKV_TESTS_TESTING_NAIVE_ATTENTION_H_

#include <cstdint>
#include <vector>

namespace wavekv::testing {

struct NaiveAttentionInput {
  std::vector<float> queries;  // [num_queries, head_dim_k]
  std::vector<float> keys;     // [num_tokens, head_dim_k]
  std::vector<float> values;   // [num_tokens, head_dim_v]
  int head_dim_k = 0;
  int head_dim_v = 0;
  double scale = 1.0;
  std::vector<int64_t> positions;    // [num_tokens]; empty: 0, 1, 2, ...
  std::vector<int64_t> visible_end;  // [num_queries]; query i sees positions below; empty: all
};

struct NaiveAttentionState {
  std::vector<double> output;  // [num_queries, head_dim_v]
  std::vector<double> lse;     // [num_queries], natural; -infinity where nothing is visible
};

// Softmax attention in double precision, one token at a time.
NaiveAttentionState NaiveAttention(const NaiveAttentionInput& input);

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_TESTING_NAIVE_ATTENTION_H_
