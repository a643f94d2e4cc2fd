#include "tests/api/random_world_questions.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "fmt/format.h"
#include "storage/status_macros.h"
#include "tests/api/random_world_tensors.h"

namespace wavekv::testing {
namespace {

// fp32 arithmetic against double, over at most some thousand tokens.
constexpr double kTolerance = 2e-4;

template <typename... Args>
absl::Status Differs(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InternalError(fmt::format(format, std::forward<Args>(args)...));
}

double RoundingOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 0.0;
    case DType::kFloat16:
      return 0x1p-11;
    case DType::kBFloat16:
      return 0x1p-8;
  }
  return 0.0;
}

// How far an estimate may leave the range of the values, relative to it: stored means are rounded,
// and what is left of one of which up to a half is taken out errs up to twice as far.
double RangeSlack(StatisticsFormat statistics) {
  switch (statistics) {
    case StatisticsFormat::kFloat32:
      return 0.02;
    case StatisticsFormat::kInt8:
      return 0.1;
    case StatisticsFormat::kInt4:
      return 1.0;
  }
  return 0.0;
}

int64_t VisibleEnd(const Question& question, int64_t length, int64_t row, int64_t num_rows) {
  if (!question.options.causal) return length;
  return std::max<int64_t>(0, length - num_rows + 1 + row);
}

Budget DrawBudget(Random& random) {
  switch (random.Integer(0, 3)) {
    case 0:
      return Budget::Tokens(random.Integer(0, 300));
    case 1:
      return Budget::Ratio(0.0);
    default:
      return Budget::Ratio(0.01 * static_cast<double>(random.Integer(0, 99)));
  }
}

// Output `at` of a row that was answered at least in part by estimation.
absl::Status CheckEstimated(float got, double min, double max, double tolerance, size_t at) {
  if (std::isfinite(got) && got >= min - tolerance && got <= max + tolerance) {
    return absl::OkStatus();
  }
  return Differs("estimated output[{}] = {} lies outside the values [{}, {}] it averages", at, got,
                 min, max);
}

}  // namespace

Question DrawQuestion(Random& random, const ModelSpec& model, int64_t num_sequences) {
  Question question;
  question.layer = static_cast<int>(random.Integer(0, model.num_layers - 1));
  question.cu_seqlens = {0};
  const int64_t rows_max = random.Integer(0, 5) == 0 ? 12 : 1;
  for (int64_t i = 0; i < num_sequences; ++i) {
    const int64_t rows = rows_max == 1 ? 1 : random.Integer(0, rows_max);
    question.cu_seqlens.push_back(question.cu_seqlens.back() + static_cast<int32_t>(rows));
  }
  question.queries = DrawRows(random, question.num_rows(), model.num_q_heads, model.head_dim_k);
  AttendOptions& options = question.options;
  options.lse_base = random.Integer(0, 3) == 0 ? LseBase::k2 : LseBase::kE;
  options.causal = random.Integer(0, 3) > 0;
  if (random.Integer(0, 1) == 0) {
    options.retrieval = Budget::All();
  } else {
    options.zones = static_cast<Zones>(random.Integer(1, 3));
    if (options.zones == Zones::kClusters && random.Integer(0, 1) == 0) {
      options.zones = Zones::kSketch;
    }
    options.retrieval = DrawBudget(random);
    options.sketch = random.Integer(0, 3) == 0 ? Budget::All() : DrawBudget(random);
    options.estimation = random.Integer(0, 3) == 0 ? Budget::All() : DrawBudget(random);
    if (random.Integer(0, 1) == 0) options.mass = MassEstimate::kLowerBound;
    if (random.Integer(0, 2) == 0) options.open = DrawBudget(random);
    options.exact_below_tokens = random.Integer(-1, 0);
    if (options.zones != Zones::kPaper && random.Integer(0, 3) == 0) {
      options.target_error = std::pow(10.0, static_cast<double>(random.Integer(-4, 1)));
    }
  }
  return question;
}

std::string ToString(const Question& question) {
  const auto budget = [](const Budget& b) {
    return b.is_ratio() ? fmt::format("{}", b.ratio()) : fmt::format("{} tokens", b.tokens());
  };
  return fmt::format(
      "layer {} rows {} zones {} retrieval {} sketch {} estimation {} open {} exact below {} "
      "target "
      "{} mass {} causal {}",
      question.layer, question.num_rows(), static_cast<int>(question.options.zones),
      budget(question.options.retrieval), budget(question.options.sketch),
      budget(question.options.estimation), budget(question.options.open),
      question.options.exact_below_tokens, question.options.target_error,
      static_cast<int>(question.options.mass), question.options.causal);
}

absl::StatusOr<Answer> Ask(Engine& engine, Random& random, absl::Span<const Sequence> sequences,
                           const Question& question) {
  const ModelSpec& model = engine.options().model;
  const int64_t rows = question.num_rows();
  Answer answer;
  answer.queries = question.queries;
  CallerTensor queries(random, rows, model.num_q_heads, model.head_dim_k);
  queries.Fill(answer.queries);
  CallerTensor output(random, rows, model.num_q_heads, model.head_dim_v);
  const bool wants_lse = random.Integer(0, 4) > 0;
  const bool heads_first = random.Integer(0, 1) == 0;
  std::vector<float> lse(rows * model.num_q_heads, std::numeric_limits<float>::quiet_NaN());
  PerHeadView lse_view;
  if (wants_lse) {
    lse_view = PerHeadView::Dense(lse.data(), rows, model.num_q_heads);
    if (heads_first) std::tie(lse_view.row_stride, lse_view.head_stride) = std::pair{1, rows};
  }
  WAVEKV_ASSIGN_OR_RETURN(const Plan plan,
                          engine.MakePlan({sequences, question.cu_seqlens}, question.options));
  std::vector<float> errors(rows * model.num_q_heads, -1.0f);
  const auto stats =
      engine.Attend(plan, question.layer, queries.view(), output.mutable_view(), lse_view,
                    PerHeadView::Dense(errors.data(), rows, model.num_q_heads));
  if (!stats.ok()) return stats.status();
  for (const float error : errors) {
    // Sums of the same numbers in another order.
    if (!(error >= 0.0f && error <= stats->error_estimate_max * 1.001)) {
      return Differs("error estimate {} of a head, at most {} in all", error,
                     stats->error_estimate_max);
    }
  }
  if (!output.FillerIsIntact()) return Differs("Attend wrote beside the output");

  answer.stats = *stats;
  answer.output = output.Read();
  answer.output_dtype = output.view().dtype;
  if (wants_lse) {
    const double to_e = question.options.lse_base == LseBase::k2 ? std::log(2.0) : 1.0;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t head = 0; head < model.num_q_heads; ++head) {
        answer.lse.push_back(static_cast<float>(
            to_e * lse[row * lse_view.row_stride + head * lse_view.head_stride]));
      }
    }
  }
  return answer;
}

absl::Status CheckAnswer(const Question& question, const Answer& answer,
                         const EngineOptions& options,
                         const std::vector<const ModelSequence*>& models) {
  const ModelSpec& model = options.model;
  const int64_t dim = model.head_dim_v;
  const int64_t query_row = static_cast<int64_t>(model.num_q_heads) * model.head_dim_k;
  const bool exact = question.is_exact() || answer.stats.tokens_estimated == 0;
  const bool bounded = question.options.zones == Zones::kClusters &&
                       question.options.mass == MassEstimate::kLowerBound &&
                       options.index.statistics == StatisticsFormat::kFloat32;
  const bool ignores = question.options.zones == Zones::kPaper;
  const double rounding = RoundingOf(answer.output_dtype);
  int64_t visible = 0;
  for (size_t i = 0; i < models.size(); ++i) {
    const int64_t first = question.cu_seqlens[i];
    const int64_t rows = question.cu_seqlens[i + 1] - first;
    const int64_t length = models[i]->length(question.layer);
    const std::vector<float> queries(answer.queries.begin() + first * query_row,
                                     answer.queries.begin() + (first + rows) * query_row);
    const NaiveAttentionState want =
        models[i]->Attend(question.layer, queries, rows, question.options.causal);
    for (int64_t row = 0; row < rows; ++row) {
      visible += VisibleEnd(question, length, row, rows) * model.num_kv_heads;
    }
    const int64_t first_state = first * model.num_q_heads;
    for (int64_t s = 0; s < rows * model.num_q_heads; ++s) {
      const size_t at = first_state + s;
      if (!answer.lse.empty()) {
        const double got = answer.lse[at];
        const double off = got - want.lse[s];
        const bool good = std::isinf(want.lse[s]) ? got == want.lse[s]
                          : exact                 ? std::abs(off) <= kTolerance
                          : ignores               ? !std::isnan(got)
                          : bounded               ? off <= kTolerance && std::isfinite(got)
                                                  : std::isfinite(got);
        if (!good) return Differs("lse[{}] = {}, expected {}", at, got, want.lse[s]);
      }
      const int64_t row = s / model.num_q_heads;
      const int kv_head = static_cast<int>(s % model.num_q_heads) / model.gqa_group_size();
      for (int64_t d = 0; d < dim; ++d) {
        const double value = want.output[s * dim + d];
        const float got = answer.output[at * dim + d];
        if (exact) {
          const double tolerance = kTolerance + rounding * std::abs(value);
          if (std::abs(got - value) <= tolerance) continue;
          return Differs("output[{}] = {}, expected {} (row {} of sequence {} of length {})",
                         at * dim + d, got, value, row, i, length);
        }
        if (ignores && got == 0.0f) continue;  // nothing was read
        const auto [min, max] = models[i]->ValueRange(question.layer, kv_head, d,
                                                      VisibleEnd(question, length, row, rows));
        // Means are stored, and leftovers subtracted, with the rounding of the statistics.
        const double tolerance =
            RangeSlack(options.index.statistics) * (max - min) + 0.02 * std::max(-min, max) + 1e-3;
        WAVEKV_RETURN_IF_ERROR(CheckEstimated(got, min, max, tolerance, at * dim + d));
      }
    }
  }
  const AttendStats& stats = answer.stats;
  if (stats.rows != question.num_rows() || stats.tokens_visible != visible) {
    return Differs("stats: {} rows and {} visible tokens, expected {} and {}", stats.rows,
                   stats.tokens_visible, question.num_rows(), visible);
  }
  if (stats.tokens_exact + stats.tokens_estimated != stats.tokens_visible ||
      stats.tokens_retrieved > stats.tokens_exact ||
      (question.options.zones == Zones::kSketch &&
       stats.tokens_retrieved > stats.tokens_sketched)) {
    return Differs(
        "stats: {} exact ({} retrieved of {} sketched) and {} estimated tokens do not make {} "
        "visible",
        stats.tokens_exact, stats.tokens_retrieved, stats.tokens_sketched, stats.tokens_estimated,
        stats.tokens_visible);
  }
  return absl::OkStatus();
}

absl::Status CheckRetrieved(const Question& question, const std::vector<RetrievedTokens>& retrieved,
                            const ModelSpec& model, const std::vector<const ModelSequence*>& models,
                            const SealedRuns& sealed) {
  if (retrieved.size() != static_cast<size_t>(question.num_rows() * model.num_kv_heads)) {
    return Differs("retrieved {} elements, expected {} rows x {} kv heads", retrieved.size(),
                   question.num_rows(), model.num_kv_heads);
  }
  for (size_t i = 0; i < models.size(); ++i) {
    const int64_t first = question.cu_seqlens[i];
    const int64_t rows = question.cu_seqlens[i + 1] - first;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t end = VisibleEnd(question, models[i]->length(question.layer), row, rows);
      int64_t num_sealed = 0;
      for (const auto& [run_begin, run_end] : sealed[i]) {
        if (run_end <= end) num_sealed += run_end - run_begin;
      }
      const AttendOptions& options = question.options;
      const bool sketch = options.zones == Zones::kSketch;
      const int64_t wanted = options.retrieval.Resolve(num_sealed);
      const int64_t budget = sketch ? std::max(wanted, options.sketch.Resolve(num_sealed)) : wanted;
      for (int64_t head = 0; head < model.num_kv_heads; ++head) {
        const RetrievedTokens& tokens = retrieved[(first + row) * model.num_kv_heads + head];
        int64_t num_tokens = 0;
        for (size_t c = 0; c < tokens.clusters.size(); ++c) {
          if (num_tokens >= budget) {
            return Differs("cluster {} was retrieved beyond the budget of {} tokens", c, budget);
          }
          if (c > 0 && tokens.clusters[c].probability > tokens.clusters[c - 1].probability) {
            return Differs("cluster {} is better than the one before it", c);
          }
          num_tokens += tokens.clusters[c].num_tokens;
        }
        // With a target, budgets are the most that is read.
        const bool fills = options.target_error == 0.0;
        if (fills && num_tokens < budget) {
          return Differs("retrieved {} tokens of a budget of {}", num_tokens, budget);
        }
        std::set<int64_t> seen;
        for (const int64_t position : tokens.positions) {
          const bool is_sealed =
              std::any_of(sealed[i].begin(), sealed[i].end(), [&](const auto& run) {
                return position >= run.first && position < run.second && run.second <= end;
              });
          if (!is_sealed)
            return Differs("position {} is not in a visible sealed segment", position);
          if (!seen.insert(position).second) return Differs("position {} came twice", position);
        }
        const auto num_seen = static_cast<int64_t>(seen.size());
        if (sketch) {
          // Clusters of which most was chosen are read whole.
          if ((fills && num_seen < wanted) || num_seen > std::min(num_tokens, 2 * wanted)) {
            return Differs("{} positions of {} sketched for a budget of {}", num_seen, num_tokens,
                           wanted);
          }
        } else if (num_seen != num_tokens) {
          return Differs("{} positions of clusters with {} tokens", seen.size(), num_tokens);
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace wavekv::testing
