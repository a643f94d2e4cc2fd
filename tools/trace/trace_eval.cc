#include "tools/trace/trace_eval.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "storage/status_macros.h"
#include "tools/trace/parallel_for.h"
#include "tools/trace/trace_truth.h"

namespace wavekv {
namespace {

// Rows of one Append: enough to convert in parallel, far more than a decode step.
constexpr int64_t kAppendRows = 8192;

// Queries that are answered together: their truth reads keys and values once. Fewer in large
// groups, as memory grows with their heads.
constexpr int64_t kBatchQueries = 64;
constexpr int64_t kBatchQueryHeads = 512;

// The engine cuts segments at multiples of this many tokens.
constexpr int64_t kCutTokens = 64;

int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

// One head in an engine of its own.
class HeadEvaluation {
 public:
  HeadEvaluation(const TraceHead& head, const TraceEvalOptions& options)
      : head_(head), options_(options) {}

  absl::StatusOr<std::vector<TraceSamples>> Run();

 private:
  // A query of a batch, with the sequence as the query sees it.
  struct Asked {
    int64_t query = 0;
    Sequence sequence;
    TruthQuery truth;
  };

  absl::Status Check() const;
  absl::Status OpenEngine();
  absl::Status StorePrompt();
  absl::Status Append(int64_t count);
  absl::StatusOr<int64_t> CountIndexed(const Sequence& sequence);
  absl::StatusOr<Asked> Ask(int64_t query);
  absl::StatusOr<std::vector<RankedCluster>> Sealed(const Sequence& sequence);
  absl::Status AnswerBatch(absl::Span<const int64_t> queries);
  absl::Status AnswerBudget(const std::vector<Asked>& asked, const Truth& truth, size_t budget);
  absl::Status Measure(const std::vector<Asked>& asked, const Truth& truth,
                       const std::vector<RetrievedTokens>& retrieved,
                       const std::vector<float>& outputs, TraceSamples& samples) const;

  int64_t num_tokens() const { return head_.keys.num_rows; }
  int64_t position(int64_t query) const { return head_.positions[query]; }

  const TraceHead& head_;
  const TraceEvalOptions& options_;
  int num_threads_ = 1;
  int64_t group_ = 0;
  int64_t dim_v_ = 0;
  int64_t padded_k_ = 0;
  int64_t padded_v_ = 0;
  int64_t first_position_ = 0;    // of all queries
  std::vector<int64_t> queries_;  // to ask, by position
  int64_t prompt_tokens_ = 0;     // stored before the first query

  std::unique_ptr<Engine> engine_;
  Tenant tenant_;
  Sequence sequence_;
  int64_t num_indexed_ = 0;
  std::vector<RankedCluster> sealed_;

  // Of the batch: [queries, group, head_dim_k], as recorded and padded; and in double, scaled.
  std::vector<float> padded_queries_;
  std::vector<double> scaled_queries_;
  std::vector<TraceSamples> samples_;  // per budget
};

absl::Status HeadEvaluation::Check() const {
  const auto check_dim = [](const RowsView& rows, int64_t head_dim) -> absl::Status {
    if (head_dim <= kHeadDimMax) return absl::OkStatus();
    return absl::UnimplementedError(absl::StrCat(rows.name, ": expected a head_dim of at most ",
                                                 kHeadDimMax, ", as the engine, got ", head_dim));
  };
  if (head_.head_dim_k < 1 || head_.keys.row_elements != head_.head_dim_k) {
    return Invalid(head_.keys.name, ": expected rows of head_dim_k = ", head_.head_dim_k,
                   " > 0 elements, got ", head_.keys.row_elements);
  }
  if (head_.values.row_elements < 1) {
    return Invalid(head_.values.name, ": expected a head_dim of at least 1, got ",
                   head_.values.row_elements);
  }
  WAVEKV_RETURN_IF_ERROR(check_dim(head_.keys, head_.head_dim_k));
  WAVEKV_RETURN_IF_ERROR(check_dim(head_.values, head_.values.row_elements));
  if (head_.values.num_rows != num_tokens()) {
    return Invalid(head_.values.name, ": expected ", num_tokens(), " tokens, as the keys, got ",
                   head_.values.num_rows);
  }
  if (head_.queries.row_elements < 1 || head_.queries.row_elements % head_.head_dim_k != 0) {
    return Invalid(head_.queries.name,
                   ": expected rows of a multiple of head_dim_k = ", head_.head_dim_k,
                   " elements, got ", head_.queries.row_elements);
  }
  constexpr int64_t kGroupMax = 65536;  // of the engine
  if (head_.queries.row_elements / head_.head_dim_k > kGroupMax) {
    return Invalid(head_.queries.name, ": expected at most ", kGroupMax, " query heads, got ",
                   head_.queries.row_elements / head_.head_dim_k);
  }
  const auto num_queries = static_cast<int64_t>(head_.positions.size());
  if (num_queries < 1 || head_.queries.num_rows != num_queries) {
    return Invalid(head_.queries.name, ": expected one row for each of ", num_queries,
                   " positions, at least one, got ", head_.queries.num_rows);
  }
  for (const int32_t at : head_.positions) {
    if (at >= 0 && at < num_tokens()) continue;
    return Invalid("positions: expected positions in [0, ", num_tokens(), "), got ", at);
  }
  if (!std::isfinite(head_.softmax_scale) || head_.softmax_scale <= 0.0) {
    return Invalid("softmax_scale: expected a finite number > 0, got ", head_.softmax_scale);
  }
  if (!std::isfinite(options_.scale_factor) || options_.scale_factor <= 0.0) {
    return Invalid("scale_factor: expected a finite number > 0, got ", options_.scale_factor);
  }
  // The engine computes in fp32, and takes 0 for its default.
  const double scale = head_.softmax_scale * options_.scale_factor;
  if (!std::isnormal(static_cast<float>(scale))) {
    return Invalid("softmax_scale: expected a product with scale_factor that fp32 can hold, got ",
                   scale);
  }
  if (options_.budgets.empty()) return Invalid("budgets: expected at least one");
  for (const AttendOptions& budget : options_.budgets) {
    WAVEKV_RETURN_IF_ERROR(ValidateAttendOptions(budget));
  }
  for (const int64_t k : options_.recall_ks) {
    if (k < 1) return Invalid("recall_ks: expected numbers >= 1, got ", k);
  }
  if (options_.num_threads < 0) {
    return Invalid("num_threads: expected a number >= 0, got ", options_.num_threads);
  }
  if (!options_.queries.has_value()) return absl::OkStatus();
  for (const int64_t query : *options_.queries) {
    if (query >= 0 && query < num_queries) continue;
    return Invalid("queries: expected numbers in [0, ", num_queries, "), got ", query);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TraceSamples>> HeadEvaluation::Run() {
  WAVEKV_RETURN_IF_ERROR(Check());
  num_threads_ = options_.num_threads > 0
                     ? options_.num_threads
                     : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  group_ = head_.queries.row_elements / head_.head_dim_k;
  dim_v_ = head_.values.row_elements;
  padded_k_ = RoundUp(head_.head_dim_k, kHeadDimStep);
  padded_v_ = RoundUp(dim_v_, kHeadDimStep);
  if (options_.queries.has_value()) {
    queries_ = *options_.queries;
  } else {
    queries_.resize(head_.positions.size());
    std::iota(queries_.begin(), queries_.end(), 0);
  }
  std::stable_sort(queries_.begin(), queries_.end(),
                   [&](int64_t a, int64_t b) { return position(a) < position(b); });
  first_position_ = *std::min_element(head_.positions.begin(), head_.positions.end());
  samples_.resize(options_.budgets.size());
  for (TraceSamples& samples : samples_) samples.recalls.resize(options_.recall_ks.size());
  if (queries_.empty()) return samples_;

  WAVEKV_RETURN_IF_ERROR(OpenEngine());
  WAVEKV_RETURN_IF_ERROR(StorePrompt());
  const int64_t batch = std::clamp<int64_t>(kBatchQueryHeads / group_, 1, kBatchQueries);
  for (size_t first = 0; first < queries_.size(); first += batch) {
    WAVEKV_RETURN_IF_ERROR(AnswerBatch(absl::MakeConstSpan(queries_).subspan(first, batch)));
  }
  return samples_;
}

absl::Status HeadEvaluation::OpenEngine() {
  const bool one_dtype = head_.keys.dtype == head_.values.dtype;
  EngineOptions options;
  options.model.num_layers = 1;
  options.model.num_kv_heads = 1;
  options.model.num_q_heads = static_cast<int>(group_);
  options.model.head_dim_k = static_cast<int>(padded_k_);
  options.model.head_dim_v = static_cast<int>(padded_v_);
  options.model.kv_dtype =
      options_.kv_dtype.value_or(one_dtype ? head_.keys.dtype : DType::kFloat32);
  options.model.softmax_scale = static_cast<float>(head_.softmax_scale * options_.scale_factor);
  options.index = options_.index;
  options.device = options_.device;
  const int64_t last_position = position(queries_.back());
  if (options_.grow) {
    prompt_tokens_ = first_position_ + 1;
    if (options_.prompt_tokens.has_value()) {
      prompt_tokens_ = std::clamp<int64_t>(*options_.prompt_tokens, 1, prompt_tokens_);
    }
  } else {
    // Everything is stored before the first query is asked, in the shape that it has then: a window
    // that reaches back from the last query to where it begins for the first keeps the rest from
    // being cut, and each query asks a fork that ends with its own position.
    prompt_tokens_ = last_position + 1;
    options.index.window_tokens += last_position - first_position_;
    options.index.update_tokens = kCutTokens;
  }
  // Room for all tokens twice: growing, and sealed with their indexes.
  EngineOptions sizing = options;
  sizing.index.window_tokens = last_position + 1;
  sizing.index.update_tokens =
      options_.grow ? options.index.update_tokens : options.index.segment_tokens;
  sizing.arena_bytes = int64_t{1} << 30;  // any
  options.worker_threads = num_threads_;
  // Two keep a GPU busy; each more would take memory.
  options.build_threads =
      options.device == Device::kCuda ? std::min(2, num_threads_) : num_threads_;
  sizing.build_threads = options.build_threads;
  WAVEKV_RETURN_IF_ERROR(ValidateEngineOptions(sizing));
  options.arena_bytes = ArenaBytesFor(sizing, last_position + 1);
  WAVEKV_ASSIGN_OR_RETURN(engine_, Engine::Open(options));
  WAVEKV_ASSIGN_OR_RETURN(tenant_, engine_->OpenTenant("trace"));
  WAVEKV_ASSIGN_OR_RETURN(sequence_, tenant_.CreateSequence());
  return absl::OkStatus();
}

absl::Status HeadEvaluation::StorePrompt() {
  while (sequence_.length() < prompt_tokens_) {
    WAVEKV_RETURN_IF_ERROR(Append(std::min(kAppendRows, prompt_tokens_ - sequence_.length())));
  }
  WAVEKV_RETURN_IF_ERROR(engine_->BuildSegments(sequence_));
  WAVEKV_RETURN_IF_ERROR(engine_->WaitForBuilds(sequence_));
  WAVEKV_ASSIGN_OR_RETURN(num_indexed_, CountIndexed(sequence_));
  return absl::OkStatus();
}

absl::Status HeadEvaluation::Append(int64_t count) {
  const int64_t first = sequence_.length();
  std::vector<float> keys(count * padded_k_);
  std::vector<float> values(count * padded_v_);
  WAVEKV_RETURN_IF_ERROR(
      LoadRows(head_.keys, first, count, head_.head_dim_k, padded_k_, keys.data()));
  WAVEKV_RETURN_IF_ERROR(LoadRows(head_.values, first, count, dim_v_, padded_v_, values.data()));
  const std::vector<int32_t> cu_seqlens = {0, static_cast<int32_t>(count)};
  const absl::Status status =
      engine_->Append({{&sequence_, 1}, cu_seqlens}, /*layer=*/0,
                      TensorView::Dense(keys.data(), DType::kFloat32, count, 1, padded_k_),
                      TensorView::Dense(values.data(), DType::kFloat32, count, 1, padded_v_));
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat(head_.keys.name, " and ", head_.values.name, ", tokens [", first,
                                   ", ", first + count, "): ", status.message()));
}

// Sealed tokens follow one another from the sinks on, so their number says which they are.
absl::StatusOr<int64_t> HeadEvaluation::CountIndexed(const Sequence& sequence) {
  AttendOptions nothing;
  nothing.retrieval = Budget::Ratio(0.0);
  nothing.estimation = Budget::Ratio(0.0);
  nothing.exact_below_tokens = 0;
  const std::vector<int32_t> cu_seqlens = {0, 1};
  WAVEKV_ASSIGN_OR_RETURN(const Plan plan,
                          engine_->MakePlan({{&sequence, 1}, cu_seqlens}, nothing));
  const std::vector<float> zeros(group_ * padded_k_);
  std::vector<float> output(group_ * padded_v_);
  WAVEKV_ASSIGN_OR_RETURN(
      const AttendStats stats,
      engine_->Attend(
          plan, 0, TensorView::Dense(zeros.data(), DType::kFloat32, 1, group_, padded_k_),
          MutableTensorView::Dense(output.data(), DType::kFloat32, 1, group_, padded_v_)));
  return stats.tokens_estimated;
}

// The sequence as it is when the query is asked.
absl::StatusOr<HeadEvaluation::Asked> HeadEvaluation::Ask(int64_t query) {
  Asked asked;
  asked.query = query;
  const int64_t length = position(query) + 1;
  if (options_.grow && sequence_.length() < length) {
    while (sequence_.length() < length) {
      WAVEKV_RETURN_IF_ERROR(Append(1));
      WAVEKV_RETURN_IF_ERROR(engine_->WaitForBuilds(sequence_));
    }
    WAVEKV_ASSIGN_OR_RETURN(num_indexed_, CountIndexed(sequence_));
  }
  WAVEKV_ASSIGN_OR_RETURN(asked.sequence, tenant_.Fork(sequence_, length));
  asked.truth.visible_end = length;
  asked.truth.indexed_begin = options_.index.sink_tokens;
  asked.truth.indexed_end = options_.index.sink_tokens + num_indexed_;
  return asked;
}

absl::Status HeadEvaluation::AnswerBatch(absl::Span<const int64_t> queries) {
  const auto num_queries = static_cast<int64_t>(queries.size());
  std::vector<Asked> asked;
  std::vector<TruthQuery> truth_queries;  // one per query head
  padded_queries_.resize(num_queries * group_ * padded_k_);
  scaled_queries_.resize(num_queries * group_ * head_.head_dim_k);
  const double scale = head_.softmax_scale * options_.scale_factor;
  for (int64_t row = 0; row < num_queries; ++row) {
    WAVEKV_ASSIGN_OR_RETURN(Asked next, Ask(queries[row]));
    truth_queries.insert(truth_queries.end(), group_, next.truth);
    asked.push_back(std::move(next));
    float* padded = padded_queries_.data() + row * group_ * padded_k_;
    WAVEKV_RETURN_IF_ERROR(
        LoadRows(head_.queries, queries[row], 1, head_.head_dim_k, padded_k_, padded));
    double* scaled = scaled_queries_.data() + row * group_ * head_.head_dim_k;
    for (int64_t q = 0; q < group_; ++q) {
      for (int64_t d = 0; d < head_.head_dim_k; ++d) {
        scaled[q * head_.head_dim_k + d] = scale * padded[q * padded_k_ + d];
      }
    }
  }
  WAVEKV_ASSIGN_OR_RETURN(const Truth truth,
                          ComputeTruth(head_.keys, head_.values, scaled_queries_, truth_queries,
                                       options_.recall_ks, num_threads_));
  for (size_t i = 0; i < options_.budgets.size(); ++i) {
    WAVEKV_RETURN_IF_ERROR(AnswerBudget(asked, truth, i));
  }
  for (const Asked& query : asked) WAVEKV_RETURN_IF_ERROR(tenant_.Remove(query.sequence));
  if (options_.on_progress) options_.on_progress(num_queries);
  return absl::OkStatus();
}

// All of them, for on_retrieved.
absl::StatusOr<std::vector<RankedCluster>> HeadEvaluation::Sealed(const Sequence& sequence) {
  AttendOptions all = AttendOptions::Clusters();
  all.retrieval = Budget::All();
  const std::vector<int32_t> cu_seqlens = {0, 1};
  WAVEKV_ASSIGN_OR_RETURN(const Plan plan, engine_->MakePlan({{&sequence, 1}, cu_seqlens}, all));
  const std::vector<float> zeros(group_ * padded_k_);
  WAVEKV_ASSIGN_OR_RETURN(
      std::vector<RetrievedTokens> retrieved,
      engine_->Retrieve(plan, 0,
                        TensorView::Dense(zeros.data(), DType::kFloat32, 1, group_, padded_k_)));
  return std::move(retrieved[0].clusters);
}

absl::Status HeadEvaluation::AnswerBudget(const std::vector<Asked>& asked, const Truth& truth,
                                          size_t budget) {
  TraceSamples& samples = samples_[budget];
  const auto num_rows = static_cast<int64_t>(asked.size());
  std::vector<Sequence> sequences;
  for (const Asked& query : asked) sequences.push_back(query.sequence);
  std::vector<int32_t> cu_seqlens(num_rows + 1);
  std::iota(cu_seqlens.begin(), cu_seqlens.end(), 0);
  // What is evaluated are zones, also of a short trace.
  AttendOptions options = options_.budgets[budget];
  options.exact_below_tokens = 0;
  WAVEKV_ASSIGN_OR_RETURN(const Plan plan, engine_->MakePlan({sequences, cu_seqlens}, options));
  const TensorView queries =
      TensorView::Dense(padded_queries_.data(), DType::kFloat32, num_rows, group_, padded_k_);
  std::vector<float> outputs(num_rows * group_ * padded_v_);
  std::vector<float> error_estimates(num_rows * group_);
  WAVEKV_ASSIGN_OR_RETURN(
      const AttendStats stats,
      engine_->Attend(
          plan, 0, queries,
          MutableTensorView::Dense(outputs.data(), DType::kFloat32, num_rows, group_, padded_v_),
          {}, PerHeadView::Dense(error_estimates.data(), num_rows, group_)));
  samples.error_estimates.insert(samples.error_estimates.end(), error_estimates.begin(),
                                 error_estimates.end());
  WAVEKV_ASSIGN_OR_RETURN(const std::vector<RetrievedTokens> retrieved,
                          engine_->Retrieve(plan, 0, queries));
  for (int64_t row = 0; options_.on_retrieved && row < num_rows; ++row) {
    // Without `grow`, all queries find the same.
    if (options_.grow || sealed_.empty()) {
      WAVEKV_ASSIGN_OR_RETURN(sealed_, Sealed(asked[row].sequence));
    }
    options_.on_retrieved(asked[row].query, budget, sealed_, retrieved[row]);
  }
  samples.num_rows += num_rows;
  samples.tokens_visible += stats.tokens_visible;
  samples.tokens_exact += stats.tokens_exact;
  samples.bytes_dense += stats.bytes_dense;
  samples.bytes_read += stats.bytes_read;
  const int64_t tokens_steady = stats.tokens_exact - stats.tokens_retrieved;
  const int64_t steady_bytes = stats.bytes_dense / stats.tokens_visible * tokens_steady;
  samples.indexed_bytes_dense += stats.bytes_dense - steady_bytes;
  samples.indexed_bytes_read += stats.bytes_read - steady_bytes;
  for (const Asked& query : asked) {
    samples.tokens_indexed += query.truth.indexed_end - query.truth.indexed_begin;
  }
  return Measure(asked, truth, retrieved, outputs, samples);
}

absl::Status HeadEvaluation::Measure(const std::vector<Asked>& asked, const Truth& truth,
                                     const std::vector<RetrievedTokens>& retrieved,
                                     const std::vector<float>& outputs,
                                     TraceSamples& samples) const {
  // What the retrieved tokens of a row are worth, per query head.
  struct RowResult {
    std::vector<double> masses;    // [group]
    std::vector<int64_t> num_top;  // [group, ks]: with a logit of the k largest
    absl::Status status;
  };
  const size_t num_ks = options_.recall_ks.size();
  const int64_t dim_k = head_.head_dim_k;
  std::vector<RowResult> results(asked.size());
  const auto read_row = [&](int64_t row) {
    RowResult& result = results[row];
    result.masses.assign(group_, 0.0);
    result.num_top.assign(group_ * num_ks, 0);
    const TruthQuery& seen = asked[row].truth;
    const std::vector<int64_t>& positions = retrieved[row].positions;
    if (static_cast<int64_t>(positions.size()) == seen.indexed_end - seen.indexed_begin) {
      for (int64_t q = 0; q < group_; ++q) {
        result.masses[q] = truth.indexed_masses[row * group_ + q];
        std::copy(options_.recall_ks.begin(), options_.recall_ks.end(),
                  result.num_top.begin() + q * num_ks);
      }
      return;
    }
    std::vector<float> key(dim_k);
    for (const int64_t at : positions) {
      result.status = LoadRows(head_.keys, at, 1, dim_k, dim_k, key.data());
      if (!result.status.ok()) return;
      for (int64_t q = 0; q < group_; ++q) {
        const int64_t state = row * group_ + q;
        const double* query = scaled_queries_.data() + state * dim_k;
        double logit = 0.0;
        for (int64_t d = 0; d < dim_k; ++d) logit += query[d] * key[d];
        result.masses[q] += std::exp(logit - truth.lses[state]);
        for (size_t k = 0; k < num_ks; ++k) {
          // The truth's logits come from matrix products, whose last bits differ.
          const double threshold = truth.thresholds[state * num_ks + k];
          const double tolerance = 1e-9 * std::max(1.0, std::abs(threshold));
          if (logit >= threshold - tolerance) ++result.num_top[q * num_ks + k];
        }
      }
    }
  };
  ParallelFor(static_cast<int64_t>(asked.size()), num_threads_,
              [&](int64_t row, int) { read_row(row); });

  for (size_t row = 0; row < asked.size(); ++row) {
    const RowResult& result = results[row];
    WAVEKV_RETURN_IF_ERROR(result.status);
    const int64_t num_indexed = asked[row].truth.indexed_end - asked[row].truth.indexed_begin;
    for (int64_t q = 0; q < group_; ++q) {
      const int64_t state = static_cast<int64_t>(row) * group_ + q;
      const double* exact = truth.outputs.data() + state * dim_v_;
      const float* output = outputs.data() + state * padded_v_;
      double error2 = 0.0;
      double norm2 = 0.0;
      for (int64_t d = 0; d < dim_v_; ++d) {
        error2 += (output[d] - exact[d]) * (output[d] - exact[d]);
        norm2 += exact[d] * exact[d];
      }
      if (!std::isfinite(error2)) {
        return Invalid(head_.queries.name, ": query ", asked[row].query,
                       ": the engine's fp32 overflows on the recorded numbers");
      }
      samples.rel_errors.push_back(std::sqrt(norm2 == 0.0 ? error2 : error2 / norm2));
      samples.masses.push_back(std::min(1.0, truth.steady_masses[state] + result.masses[q]));
      if (num_indexed == 0) continue;
      const double indexed_mass = truth.indexed_masses[state];
      samples.indexed_masses.push_back(
          indexed_mass == 0.0 ? 1.0 : std::min(1.0, result.masses[q] / indexed_mass));
      for (size_t k = 0; k < num_ks; ++k) {
        // Tokens of equal logits are worth the same, so more than k may have one of the k largest.
        const int64_t wanted = std::min(options_.recall_ks[k], num_indexed);
        samples.recalls[k].push_back(
            static_cast<double>(std::min(wanted, result.num_top[q * num_ks + k])) /
            static_cast<double>(wanted));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<TraceSamples>> EvaluateHead(const TraceHead& head,
                                                       const TraceEvalOptions& options) {
  return HeadEvaluation(head, options).Run();
}

}  // namespace wavekv
