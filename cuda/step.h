// One layer of one step on a GPU: what kernels know of the sequences of a batch, and what lies
// between one kernel and the next.
//
// A unit is one row of one kv head with the query heads of its GQA group, or, where all is attended
// exactly, a tile of rows. What a unit reads follows from tables in device memory, so launches that
// were captured in a graph stay right while sequences grow, up to the bounds of StepBounds.
#ifndef WAVEKV_CUDA_STEP_H_
#define WAVEKV_CUDA_STEP_H_

#include <cstddef>
#include <cstdint>

#include "compute/estimate_clusters.h"
#include "compute/rotate_rows.h"
#include "compute/score_supers.h"
#include "compute/score_tokens.h"
#include "compute/select_tokens.h"
#include "cuda/attend_rows.h"
#include "cuda/gpu_types.h"

namespace wavekv {

// Rows of tokens in the order of appending, all kv heads: a row chunk.
struct StepChunk {
  const std::byte* rows = nullptr;  // head h at rows + h * capacity * row bytes: keys, then values
  int64_t capacity = 0;
  int64_t position_begin = 0;
};

// A sealed segment; its indexes are StepTables::indexes[(first_segment + i) * num_kv_heads + head].
struct StepSegment {
  int64_t begin = 0;
  int64_t end = 0;
};

// What the rows of a step see of one sequence in one layer.
struct StepSequence {
  int64_t length = 0;     // with the rows of the step
  int64_t num_rows = 0;   // of the step
  int64_t batch_row = 0;  // where its rows begin in the tensors of the batch
  int64_t first_row = 0;  // of those in this launch, among the sequence's
  int64_t rows_here = 0;
  int64_t first_state = 0;  // of the launch's [states] of query heads: (kv head, row, query head)
  int64_t first_unit = 0;
  int64_t first_segment = 0;
  int64_t num_segments = 0;
  int64_t first_chunk = 0;
  int64_t num_chunks = 0;
};

// In device memory, written by the host before the step.
struct StepTables {
  const StepSequence* sequences = nullptr;
  const StepSegment* segments = nullptr;
  const ClusterIndex* const* indexes = nullptr;
  const StepChunk* chunks = nullptr;
};

// A number of tokens of a sequence, as Budget says it.
struct StepBudget {
  double ratio = 0.0;
  int64_t tokens = -1;  // >= 0: in place of the ratio
};

// What AttendOptions says.
struct StepOptions {
  Zones zones = Zones::kSketch;
  StepBudget retrieval, sketch, estimation, open;
  bool opens_all = true;
  bool exact = false;  // everything is attended
  bool causal = true;
  MassEstimate mass = MassEstimate::kSecondOrder;
  Ranking ranking = Ranking::kOptimistic;
  Zone last_zone = Zone::kRemainder;
  double target_error = 0.0;
  float softmax_scale = 1.0f;
  float lse_scale = 1.0f;
};

// What the buffers of a step hold at most: of one unit where not said otherwise.
struct StepBounds {
  TaskBounds task;  // shape, statistics, code_bits; num_queries of a unit
  int num_kv_heads = 0;
  int group = 0;      // query heads of a kv head
  int tile_rows = 1;  // rows of a unit: 1, unless all is attended exactly
  int num_sequences = 0;
  int64_t num_units = 0;   // of a launch
  int64_t num_states = 0;  // of a launch: query vectors
  int64_t segments = 0;
  int64_t clusters = 0;        // of all segments
  int64_t index_clusters = 0;  // of one segment
  int64_t supers = 0;
  int64_t index_supers = 0;
  int64_t sketch_tokens = 0;
  int64_t index_tokens = 0;  // of one segment
  int64_t chosen = 0;        // tokens that are listed one by one
  int64_t ranges = 0;
  int num_splits = 1;     // of the rows that are attended exactly
  int steady_splits = 0;  // with a target_error the steady zone is attended first, in so many

  constexpr int num_exact_states() const { return steady_splits + num_splits; }
};

// What is known of a unit once the tables have been looked at.
struct StepUnit {
  int64_t sequence = 0;
  int64_t row = 0;  // the first of its rows, among the sequence's
  int64_t num_rows = 0;
  int64_t kv_head = 0;
  int64_t first_state = 0;
  int64_t visible_end = 0;  // of its last row
  int64_t num_indexes = 0;
  int64_t num_supers = 0;
  int64_t num_clusters = 0;
  int64_t sealed_tokens = 0;
  int64_t num_sketch_tokens = 0;
  int64_t num_selected = 0;  // clusters of the first zone
  int64_t num_chosen = 0;    // tokens, as SelectTokens says
  int64_t num_listed = 0;    // tokens that are attended one by one
};

// What a step did, as AttendStats says it; sums of integers are over units, in any order.
struct StepStats {
  int64_t tokens_visible = 0;
  int64_t tokens_exact = 0;
  int64_t tokens_retrieved = 0;
  int64_t tokens_sketched = 0;
  int64_t tokens_estimated = 0;
  int64_t clusters_scored = 0;
  int64_t clusters_retrieved = 0;
  int64_t bytes_dense = 0;
  int64_t bytes_read = 0;
  double estimated_mass = 0.0;  // sum over rows and query heads
  double estimated_mass_max = 0.0;
  double error_estimate = 0.0;
  double error_estimate_max = 0.0;
};

// Pointers into a workspace in device memory; [n] counts elements, U = num_units, Q = queries of a
// unit, S = segments.
struct StepBuffers {
  float* queries = nullptr;         // [num_states, head_dim_k], scaled
  float* rotated = nullptr;         // the same, rotated
  float* outputs = nullptr;         // [num_states, head_dim_v]
  float* lses = nullptr;            // [num_states]
  float* errors = nullptr;          // [num_states]
  float* masses = nullptr;          // [num_states], shares that were estimated
  int64_t* visible_ends = nullptr;  // [num_states]
  StepUnit* units = nullptr;        // [U]

  const ClusterIndex** indexes = nullptr;  // [U, S]
  uint32_t* first_clusters = nullptr;      // [U, S + 1]
  uint32_t* first_supers = nullptr;        // [U, S + 1]

  uint32_t* super_sizes = nullptr;    // [U, supers]
  float* super_log_masses = nullptr;  // [U, group, supers]
  float* super_scores = nullptr;
  float* super_probabilities = nullptr;  // [U, supers]
  Zone* super_zones = nullptr;
  uint32_t* super_retrieved = nullptr;

  uint32_t* sizes = nullptr;    // [U, clusters]
  float* log_masses = nullptr;  // [U, group, clusters]
  float* rank_scores = nullptr;
  float* probabilities = nullptr;  // [U, clusters]
  Zone* zones = nullptr;
  uint32_t* retrieved = nullptr;

  uint32_t* sketch_clusters = nullptr;  // [U, clusters]: numbers within their index
  uint32_t* sketch_before = nullptr;    // [U, clusters + 1]: clusters of the sketch zone before
  uint32_t* tokens_before = nullptr;    // [U, clusters + 1]: tokens of the sketch zone before
  float* token_logits = nullptr;        // [U, group, sketch_tokens]
  float* token_scores = nullptr;
  float* token_probabilities = nullptr;  // [U, sketch_tokens]
  uint8_t* chosen = nullptr;

  uint32_t* listed = nullptr;          // [U, clusters]: tokens of a cluster that are listed
  uint32_t* segment_listed = nullptr;  // [U, S]
  TokenRow* rows = nullptr;            // [U, chosen]
  const std::byte** values = nullptr;  // [U, chosen]
  KvRange* ranges = nullptr;           // [U, ranges]
  int64_t* range_begins = nullptr;     // [U, ranges + 1]

  float* exact_outputs = nullptr;      // [U, num_exact_states, Q, head_dim_v], steady ones first
  float* exact_lses = nullptr;         // [U, num_exact_states, Q]
  float* estimated_outputs = nullptr;  // [U, S, group, head_dim_v]
  float* estimated_lses = nullptr;     // [U, S, group]
  float* missing_lses = nullptr;
  float* value_variances = nullptr;
  int64_t* num_value_means = nullptr;  // [U, S]
  int64_t* num_super_value_means = nullptr;

  RotateRowsTask* rotate = nullptr;             // [1]
  ScoreSupersTask* score_supers = nullptr;      // [U, S]
  SelectClustersTask* select_supers = nullptr;  // [U]
  ScoreClustersTask* score_clusters = nullptr;  // [U, S]
  SelectClustersTask* select_clusters = nullptr;
  ScoreTokensTask* score_tokens = nullptr;    // [U, S]
  SelectTokensTask* select_tokens = nullptr;  // [U]
  GpuAttendTask* attend = nullptr;            // [U]
  GpuAttendTask* attend_steady = nullptr;     // [U], with a target_error
  EstimateClustersTask* estimate = nullptr;   // [U, S]
  std::byte* scratch = nullptr;               // of selections and estimates

  // What target_error goes by.
  EstimateClustersTask* coarse = nullptr;  // [U, S]: all by means of super-clusters
  float* coarse_lses = nullptr;            // [num_states]
  float* inverse_squares = nullptr;        // [num_states]
  float* logit_spreads = nullptr;          // [num_states]
  float* cluster_variances = nullptr;      // [U, clusters]
  float* hidden_variances = nullptr;
  float* key_spreads = nullptr;
  float* token_variances = nullptr;    // [U, sketch_tokens]
  RiskLimit* cluster_risks = nullptr;  // [U]
  RiskLimit* token_risks = nullptr;
};

// Where a kernel finds the caller's queries and puts what it answers. Strides count elements.
struct StepQueries {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
};
struct StepOutputs {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
  float* lse = nullptr;  // nullptr: not wanted
  int64_t lse_row_stride = 0;
  int64_t lse_head_stride = 0;
  float* error = nullptr;
  int64_t error_row_stride = 0;
  int64_t error_head_stride = 0;
};

// Set by kernels, in memory that the host reads: what the caller handed over and should not have.
struct StepFlags {
  uint32_t bad_queries = 0;  // not finite: taken as 0
  uint32_t bad_rows = 0;     // keys or values likewise
  uint32_t overflow = 0;     // a bound was too small: the step's answer is not to be used
};

}  // namespace wavekv

#endif  // WAVEKV_CUDA_STEP_H_
