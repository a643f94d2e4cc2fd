// What a sequence should hold, kept the simplest way, and what attention over it should answer.
#ifndef WAVEKV_TESTS_TESTING_MODEL_SEQUENCE_H_
#define WAVEKV_TESTS_TESTING_MODEL_SEQUENCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "tests/testing/naive_attention.h"
#include "tests/testing/random.h"
#include "wavekv/model_spec.h"

namespace wavekv::testing {

// All rows of all layers as fp32, rounded to the stored type as they were appended.
class ModelSequence {
 public:
  explicit ModelSequence(const ModelSpec& model)
      : model_(model), keys_(model.num_layers), values_(model.num_layers) {}

  int64_t length(int layer) const {
    return static_cast<int64_t>(keys_[layer].size()) / (model_.num_kv_heads * model_.head_dim_k);
  }

  // keys [num_rows, num_kv_heads, head_dim_k], values [num_rows, num_kv_heads, head_dim_v].
  void Append(int layer, const std::vector<float>& keys, const std::vector<float>& values) {
    AppendRounded(keys_[layer], keys);
    AppendRounded(values_[layer], values);
  }

  void Truncate(int64_t length) {
    for (int layer = 0; layer < model_.num_layers; ++layer) {
      keys_[layer].resize(length * model_.num_kv_heads * model_.head_dim_k);
      values_[layer].resize(length * model_.num_kv_heads * model_.head_dim_v);
    }
  }

  // Tokens that every layer has.
  int64_t length() const {
    int64_t shortest = length(0);
    for (int layer = 1; layer < model_.num_layers; ++layer) {
      shortest = std::min(shortest, length(layer));
    }
    return shortest;
  }

  // The least and the greatest of feature d of the values before position `end`; zeros if none.
  std::pair<float, float> ValueRange(int layer, int kv_head, int64_t d, int64_t end) const {
    std::pair<float, float> range = {0.0f, 0.0f};
    for (int64_t token = 0; token < std::min(end, length(layer)); ++token) {
      const float value =
          values_[layer][(token * model_.num_kv_heads + kv_head) * model_.head_dim_v + d];
      if (token == 0) range = {value, value};
      range = {std::min(range.first, value), std::max(range.second, value)};
    }
    return range;
  }

  // The softmax weights that one query, a row of one head, gives the positions before `end`.
  std::vector<double> Weights(int layer, int q_head, const float* query, int64_t end) const {
    const int kv_head = q_head / model_.gqa_group_size();
    std::vector<double> weights(std::min(end, length(layer)));
    double max = -std::numeric_limits<double>::infinity();
    for (size_t token = 0; token < weights.size(); ++token) {
      const float* key =
          keys_[layer].data() + (token * model_.num_kv_heads + kv_head) * model_.head_dim_k;
      double dot = 0.0;
      for (int d = 0; d < model_.head_dim_k; ++d) dot += static_cast<double>(query[d]) * key[d];
      weights[token] = dot * model_.scale();
      max = std::max(max, weights[token]);
    }
    double sum = 0.0;
    for (double& weight : weights) sum += weight = std::exp(weight - max);
    for (double& weight : weights) weight /= sum;
    return weights;
  }

  // The state of query rows [num_rows, num_q_heads, head_dim_k] at the end of the sequence, in the
  // same order: output [num_rows, num_q_heads, head_dim_v], lse [num_rows, num_q_heads].
  NaiveAttentionState Attend(int layer, const std::vector<float>& queries, int64_t num_rows,
                             bool causal = true) const {
    NaiveAttentionState all;
    all.output.resize(num_rows * model_.num_q_heads * model_.head_dim_v);
    all.lse.resize(num_rows * model_.num_q_heads);
    const int64_t tokens = length(layer);
    for (int head = 0; head < model_.num_q_heads; ++head) {
      NaiveAttentionInput input;
      input.head_dim_k = model_.head_dim_k;
      input.head_dim_v = model_.head_dim_v;
      input.scale = model_.scale();
      const int kv_head = head / model_.gqa_group_size();
      input.keys = Head(keys_[layer], tokens, model_.num_kv_heads, kv_head, model_.head_dim_k);
      input.values = Head(values_[layer], tokens, model_.num_kv_heads, kv_head, model_.head_dim_v);
      input.queries = Head(queries, num_rows, model_.num_q_heads, head, model_.head_dim_k);
      for (int64_t row = 0; row < num_rows; ++row) {
        input.visible_end.push_back(causal ? std::max<int64_t>(0, tokens - num_rows + 1 + row)
                                           : tokens);
      }
      const NaiveAttentionState state = NaiveAttention(input);
      for (int64_t row = 0; row < num_rows; ++row) {
        all.lse[row * model_.num_q_heads + head] = state.lse[row];
        for (int d = 0; d < model_.head_dim_v; ++d) {
          all.output[(row * model_.num_q_heads + head) * model_.head_dim_v + d] =
              state.output[row * model_.head_dim_v + d];
        }
      }
    }
    return all;
  }

 private:
  void AppendRounded(std::vector<float>& rows, const std::vector<float>& more) {
    const std::vector<float> rounded = Rounded(more, model_.kv_dtype);
    rows.insert(rows.end(), rounded.begin(), rounded.end());
  }

  static std::vector<float> Head(const std::vector<float>& rows, int64_t num_rows, int num_heads,
                                 int head, int head_dim) {
    std::vector<float> picked;
    picked.reserve(num_rows * head_dim);
    for (int64_t row = 0; row < num_rows; ++row) {
      const float* first = rows.data() + (row * num_heads + head) * head_dim;
      picked.insert(picked.end(), first, first + head_dim);
    }
    return picked;
  }

  ModelSpec model_;
  std::vector<std::vector<float>> keys_;  // per layer
  std::vector<std::vector<float>> values_;
};

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_TESTING_MODEL_SEQUENCE_H_
