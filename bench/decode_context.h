// What steps of a batch are timed on: sealed sequences of one layer, checked and with the error of
// what is timed.
#ifndef WAVEKV_BENCH_DECODE_CONTEXT_H_
#define WAVEKV_BENCH_DECODE_CONTEXT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "bench/synthetic_layer.h"
#include "wavekv/engine.h"

namespace wavekv::bench {

// How an answer compares with exact attention over the same rows.
struct StepQuality {
  double rel_err_mean = 0.0;  // over queries and query heads
  double bytes_ratio = 0.0;   // read, of those of K and V
};

// Equal sequences, each with memory of its own. Their steps ask different queries. One thread at a
// time.
class DecodeContext {
 public:
  // `spec`: of each sequence. threads: of the engine. INTERNAL when exact attention is not what
  // naive attention in double precision says, or differs from sequence to sequence.
  static absl::StatusOr<std::unique_ptr<DecodeContext>> Create(const SyntheticLayerSpec& spec,
                                                               int num_sequences, int threads,
                                                               Device device);

  const SyntheticLayerSpec& spec() const { return layer_.spec(); }
  int num_sequences() const { return static_cast<int>(sequences_.size()); }
  int64_t kv_bytes() const { return spec().kv_bytes() * num_sequences(); }

  // One decode step after the other; the queries take turns.
  absl::Status Step(const AttendOptions& options);

  // Over all queries at their positions, as rows of one causal step of the first sequence.
  absl::StatusOr<StepQuality> Measure(const AttendOptions& options);

 private:
  explicit DecodeContext(SyntheticLayer layer) : layer_(std::move(layer)) {}

  int64_t query_elements() const { return int64_t{spec().num_q_heads()} * spec().head_dim; }
  // `rows` queries from `first_query` on for each of the sequences, in one call, to output_.
  absl::StatusOr<AttendStats> Attend(absl::Span<const Sequence> sequences, int64_t first_query,
                                     int32_t rows, const AttendOptions& options);
  absl::Status CheckExact();

  const SyntheticLayer layer_;
  std::unique_ptr<Engine> engine_;
  std::vector<Sequence> sequences_;
  std::vector<float> queries_;  // of the layer, from the start again behind the end
  std::vector<float> exact_;    // outputs of the layer's queries
  std::vector<float> output_;
  int64_t steps_ = 0;
};

}  // namespace wavekv::bench

#endif  // WAVEKV_BENCH_DECODE_CONTEXT_H_
