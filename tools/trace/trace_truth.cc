#include "tools/trace/trace_truth.h"

#include <cblas.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "storage/status_macros.h"
#include "tools/trace/parallel_for.h"

namespace wavekv {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Tokens of one matrix product: logits of a few hundred queries stay in a core's cache.
constexpr int64_t kBlockTokens = 256;

// A task is a stripe of tokens, a function of the data alone. More stripes than these would only
// cost memory.
constexpr int64_t kStripesMax = 64;

// The largest k numbers that were offered.
class Largest {
 public:
  explicit Largest(size_t k) : k_(k) {}

  void Offer(double value) {
    if (value <= floor_) return;
    values_.push_back(value);
    if (values_.size() >= 2 * k_ + 64) Shrink();
  }
  void OfferAll(const Largest& other) {
    for (const double value : other.values_) Offer(value);
  }
  std::vector<double> Descending() {
    if (values_.size() > k_) Shrink();
    std::sort(values_.begin(), values_.end(), std::greater<>());
    return values_;
  }

 private:
  void Shrink() {
    std::nth_element(values_.begin(), values_.begin() + (k_ - 1), values_.end(), std::greater<>());
    values_.resize(k_);
    floor_ = values_[k_ - 1];
  }

  size_t k_;
  double floor_ = -kInfinity;
  std::vector<double> values_;
};

// Attention over a stripe, relative to e^max.
struct StripeState {
  std::vector<double> max;      // [num_queries]
  std::vector<double> steady;   // [num_queries]
  std::vector<double> indexed;  // [num_queries]
  std::vector<double> outputs;  // [num_queries, head_dim_v]
  absl::Status status;
};

struct Worker {
  std::vector<float> floats;
  std::vector<double> keys;      // [kBlockTokens, head_dim_k]
  std::vector<double> values;    // [kBlockTokens, head_dim_v]
  std::vector<double> logits;    // [num_queries, kBlockTokens], then weights
  std::vector<Largest> largest;  // [num_queries]
};

class TruthPass {
 public:
  TruthPass(const RowsView& keys, const RowsView& values, const std::vector<double>& queries,
            absl::Span<const TruthQuery> asked)
      : keys_(keys),
        values_(values),
        queries_(queries),
        asked_(asked),
        num_queries_(static_cast<int64_t>(asked.size())) {}

  void Run(int64_t begin, int64_t end, Worker& worker, StripeState& state) const {
    state.max.assign(num_queries_, -kInfinity);
    state.steady.assign(num_queries_, 0.0);
    state.indexed.assign(num_queries_, 0.0);
    state.outputs.assign(num_queries_ * values_.row_elements, 0.0);
    worker.logits.resize(num_queries_ * kBlockTokens);
    for (int64_t first = begin; first < end && state.status.ok(); first += kBlockTokens) {
      state.status = AddBlock(first, std::min(kBlockTokens, end - first), worker, state);
    }
  }

 private:
  absl::Status AddBlock(int64_t first, int64_t count, Worker& worker, StripeState& state) const {
    WAVEKV_RETURN_IF_ERROR(Load(keys_, first, count, worker.floats, worker.keys));
    WAVEKV_RETURN_IF_ERROR(Load(values_, first, count, worker.floats, worker.values));
    const auto dim_k = static_cast<int>(keys_.row_elements);
    const auto dim_v = static_cast<int>(values_.row_elements);
    const auto num_queries = static_cast<int>(num_queries_);
    const auto num_tokens = static_cast<int>(count);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, num_queries, num_tokens, dim_k, 1.0,
                queries_.data(), dim_k, worker.keys.data(), dim_k, 0.0, worker.logits.data(),
                kBlockTokens);
    for (int64_t query = 0; query < num_queries_; ++query)
      Weigh(query, first, count, worker, state);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, num_queries, dim_v, num_tokens, 1.0,
                worker.logits.data(), kBlockTokens, worker.values.data(), dim_v, 1.0,
                state.outputs.data(), dim_v);
    return absl::OkStatus();
  }

  static absl::Status Load(const RowsView& rows, int64_t first, int64_t count,
                           std::vector<float>& floats, std::vector<double>& doubles) {
    floats.resize(count * rows.row_elements);
    WAVEKV_RETURN_IF_ERROR(
        LoadRows(rows, first, count, rows.row_elements, rows.row_elements, floats.data()));
    doubles.assign(floats.begin(), floats.end());
    return absl::OkStatus();
  }

  // Turns the query's logits of a block into weights and counts them.
  void Weigh(int64_t query, int64_t first, int64_t count, Worker& worker,
             StripeState& state) const {
    const TruthQuery& asked = asked_[query];
    double* logits = worker.logits.data() + query * kBlockTokens;
    const auto clamp = [&](int64_t position) {
      return std::clamp<int64_t>(position - first, 0, count);
    };
    const int64_t visible = clamp(asked.visible_end);
    const int64_t indexed_begin = std::min(visible, clamp(asked.indexed_begin));
    const int64_t indexed_end =
        std::max(indexed_begin, std::min(visible, clamp(asked.indexed_end)));
    for (int64_t i = indexed_begin; i < indexed_end; ++i) worker.largest[query].Offer(logits[i]);

    const double block_max = *std::max_element(logits, logits + std::max<int64_t>(visible, 1));
    if (visible > 0 && block_max > state.max[query]) {
      const double shrink = std::exp(state.max[query] - block_max);
      state.max[query] = block_max;
      state.steady[query] *= shrink;
      state.indexed[query] *= shrink;
      double* output = state.outputs.data() + query * values_.row_elements;
      for (int64_t d = 0; d < values_.row_elements; ++d) output[d] *= shrink;
    }
    const auto weigh = [&](int64_t begin, int64_t end) {
      double sum = 0.0;
      for (int64_t i = begin; i < end; ++i) {
        logits[i] = std::exp(logits[i] - state.max[query]);
        sum += logits[i];
      }
      return sum;
    };
    state.steady[query] += weigh(0, indexed_begin) + weigh(indexed_end, visible);
    state.indexed[query] += weigh(indexed_begin, indexed_end);
    std::fill(logits + visible, logits + count, 0.0);
  }

  const RowsView& keys_;
  const RowsView& values_;
  const std::vector<double>& queries_;
  const absl::Span<const TruthQuery> asked_;
  const int64_t num_queries_;
};

// The states of all stripes, merged in their order.
void Merge(const std::vector<StripeState>& states, int64_t head_dim_v, Truth& truth) {
  const int64_t num_queries = static_cast<int64_t>(states[0].max.size());
  truth.outputs.assign(num_queries * head_dim_v, 0.0);
  for (int64_t query = 0; query < num_queries; ++query) {
    double max = -kInfinity;
    for (const StripeState& state : states) max = std::max(max, state.max[query]);
    double steady = 0.0;
    double indexed = 0.0;
    double* output = truth.outputs.data() + query * head_dim_v;
    for (const StripeState& state : states) {
      const double weight = std::exp(state.max[query] - max);
      steady += weight * state.steady[query];
      indexed += weight * state.indexed[query];
      const double* part = state.outputs.data() + query * head_dim_v;
      for (int64_t d = 0; d < head_dim_v; ++d) output[d] += weight * part[d];
    }
    const double sum = steady + indexed;
    for (int64_t d = 0; d < head_dim_v; ++d) output[d] /= sum;
    truth.lses.push_back(max + std::log(sum));
    truth.steady_masses.push_back(steady / sum);
    truth.indexed_masses.push_back(indexed / sum);
  }
}

}  // namespace

absl::StatusOr<Truth> ComputeTruth(const RowsView& keys, const RowsView& values,
                                   const std::vector<double>& queries,
                                   absl::Span<const TruthQuery> asked, absl::Span<const int64_t> ks,
                                   int num_threads) {
  int64_t num_tokens = 0;
  for (const TruthQuery& query : asked) num_tokens = std::max(num_tokens, query.visible_end);
  const int64_t blocks = (num_tokens + kBlockTokens - 1) / kBlockTokens;
  const int64_t stripe_tokens = (blocks + kStripesMax - 1) / kStripesMax * kBlockTokens;
  const int64_t num_stripes = (num_tokens + stripe_tokens - 1) / stripe_tokens;
  const size_t k_max = ks.empty() ? 1 : *std::max_element(ks.begin(), ks.end());

  const TruthPass pass(keys, values, queries, asked);
  std::vector<StripeState> states(num_stripes);
  std::vector<Worker> workers(num_threads);
  ParallelFor(num_stripes, num_threads, [&](int64_t stripe, int number) {
    omp_set_num_threads(1);  // of OpenBLAS, for this thread
    Worker& worker = workers[number];
    worker.largest.resize(asked.size(), Largest(k_max));
    const int64_t begin = stripe * stripe_tokens;
    pass.Run(begin, std::min(begin + stripe_tokens, num_tokens), worker, states[stripe]);
  });
  for (const StripeState& state : states) WAVEKV_RETURN_IF_ERROR(state.status);

  Truth truth;
  Merge(states, values.row_elements, truth);
  for (size_t query = 0; query < asked.size(); ++query) {
    Largest largest(k_max);
    for (const Worker& worker : workers) {
      if (!worker.largest.empty()) largest.OfferAll(worker.largest[query]);
    }
    const std::vector<double> descending = largest.Descending();
    for (const int64_t k : ks) {
      const size_t last = std::min<size_t>(k, descending.size());
      truth.thresholds.push_back(last == 0 ? kInfinity : descending[last - 1]);
    }
  }
  return truth;
}

}  // namespace wavekv
