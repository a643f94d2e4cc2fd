// One layer of one step: from queries to outputs, through the zones.
#ifndef WAVEKV_API_ATTEND_STEP_H_
#define WAVEKV_API_ATTEND_STEP_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "api/lanes.h"
#include "api/scratch_vector.h"
#include "api/step_observer.h"
#include "api/step_rows.h"
#include "api/step_view.h"
#include "compute/backend.h"
#include "compute/choose_tokens.h"
#include "compute/token_bits.h"
#include "wavekv/engine.h"  // RetrievedTokens
#include "wavekv/executor.h"
#include "wavekv/model_spec.h"
#include "wavekv/options.h"
#include "wavekv/stats.h"
#include "wavekv/tensor_view.h"

namespace wavekv {

// A group of rows and where the partial states of its pieces lie.
struct PieceGroup {
  size_t group = 0;  // in AttendWorkspace::rows
  size_t first_piece = 0;
  size_t num_pieces = 0;
  int64_t first_part = 0;
};

// The G query heads of one kv head for one row that is answered by zones: what is ranked, read and
// merged on its own. Offsets point into the workspace, which may move while it grows.
struct ZoneUnit {
  const SequenceView* view = nullptr;
  int64_t row = 0;  // within the sequence
  int kv_head = 0;
  int64_t visible_end = 0;
  int64_t first_state = 0;  // in queries and outputs, in units of one head's vector

  int64_t first_index = 0;  // of its indexes
  int64_t num_indexes = 0;
  int64_t first_super = 0;  // in the workspace's levels: one element each, G in masses and scores
  int64_t num_supers = 0;
  int64_t first_cluster = 0;
  int64_t num_clusters = 0;
  int64_t num_retrieved = 0;  // clusters of the retrieval or the sketch zone
  int64_t sealed_tokens = 0;

  int64_t first_sketch_token = 0;  // in chosen, shares and risks; times G in logits
  int64_t num_sketch_tokens = 0;
  int64_t num_chosen = 0;
  int64_t num_degraded = 0;  // tokens that were to be read, but came too late

  PieceGroup steady;           // the steady zone, where it is read before zones are known
  PieceGroup read;             // all else that is attended
  int64_t first_estimate = 0;  // partial states of its indexes
};

// What is ranked together: the clusters or the super-clusters of all units.
struct RankedLevel {
  ScratchVector<uint32_t> sizes;  // in tokens
  ScratchVector<float> log_masses;
  ScratchVector<float> rank_scores;
  ScratchVector<float> probabilities;
  ScratchVector<Zone> zones;
  ScratchVector<uint32_t> retrieved;

  int64_t size() const { return static_cast<int64_t>(sizes.size()); }

  // Makes room beside all sizes; what stands there is not cleared.
  void Resize(int num_queries) {
    log_masses.resize(sizes.size() * num_queries);
    rank_scores.resize(sizes.size() * num_queries);
    probabilities.resize(sizes.size());
    zones.resize(sizes.size());
    retrieved.resize(sizes.size());
  }
};

// The sketch zone of one unit in one index.
struct SketchPart {
  int64_t first_cluster = 0;  // in sketch_clusters
  int64_t num_clusters = 0;
  int64_t first_token = 0;  // among the unit's
  int64_t num_tokens = 0;
  size_t first_value = 0;  // of its chosen tokens in rows.value_rows()
  size_t num_values = 0;
};

// Of a part of the sketch zone, those clusters of which tokens are chosen.
struct ChosenClusters {
  struct Cluster {
    uint32_t cluster;
    uint32_t first;  // its first token's number in the part
  };
  TokenBits tokens;  // of the part
  ScratchVector<Cluster> clusters;
};

// Some queries of one kv head over one piece of its rows.
struct ExactPart {
  int64_t first_state = 0;  // of the queries
  int num_queries = 0;
  int64_t first_visible_end = -1;  // in visible_ends; -1: all tokens are visible
  size_t piece = 0;
  int64_t first_partial = -1;  // in partial_lses; -1: the only part, straight to the outputs
  int64_t unit = -1;           // of a row that is answered by zones
  int64_t next = -1;           // part of the same piece
};

// What goes into a step and comes out of it. Each call pins the segments and chunks of its views
// anew, which copies two short lists of references a sequence.
struct StepBatch {
  std::vector<SequenceView> views;

  // Rows regrouped by (sequence, kv head, row, head of the group), so that the queries that share
  // keys are neighbours: [num_states, head_dim_k], [num_states, head_dim_v] and [num_states].
  std::vector<float> queries;
  std::vector<float> outputs;
  std::vector<float> lses;
  std::vector<float> errors;  // estimated
};

// A row that is answered by zones, for one kv head.
struct ZoneRow {
  const SequenceView* view = nullptr;
  int64_t row = 0;  // within the sequence
  int kv_head = 0;
};

// Buffers of a step, grown to the largest layer seen and reused.
struct AttendWorkspace {
  StepBatch batch;

  std::vector<ZoneRow> zone_rows;
  // Where each worker answers rows by zones from the first stage to the last.
  std::unique_ptr<Lanes> lanes;
  std::vector<std::unique_ptr<AttendWorkspace>> lane_workspaces;  // of each lane
  // Numbers of zone_rows in the order in which they are begun; what each adds to the stats.
  std::vector<int64_t> lane_order;
  std::vector<AttendStats> lane_stats;
  std::vector<absl::Status> lane_statuses;

  // Exact attention.
  std::vector<ExactPart> exact_parts;
  StepRows rows;
  std::vector<int64_t> first_parts;    // of each piece, -1: none
  std::vector<size_t> pieces_to_come;  // that are to be attended
  std::vector<size_t> pieces_in_work;
  std::vector<StepRows::Late> late;
  bool rows_were_missing = false;  // when units were answered last
  std::vector<int64_t> visible_ends;
  ScratchVector<float> partial_outputs;
  ScratchVector<float> partial_lses;

  // Zones.
  std::vector<ZoneUnit> units;
  ScratchVector<float> rotated_queries;  // of the units, in their order
  std::vector<const ClusterIndex*> indexes;
  std::vector<const SealedHead*> heads;  // of the indexes
  RankedLevel supers;
  RankedLevel clusters;
  std::vector<SketchPart> sketch_parts;   // as indexes
  std::vector<uint32_t> sketch_clusters;  // numbers within their index, ascending
  ScratchVector<float> token_masses;
  ScratchVector<float> token_offsets;  // of their masses, as indexes
  ScratchVector<float> token_shares;
  ScratchVector<float> token_risks;
  ScratchVector<float> log_totals;  // of rank scores, as units
  ScratchVector<uint8_t> chosen;
  ScratchVector<int64_t> num_value_means;  // as indexes
  ScratchVector<int64_t> num_super_value_means;
  ScratchVector<float> missing_lses;
  ScratchVector<float> value_variance;
  ScratchVector<float> estimated_outputs;
  ScratchVector<float> estimated_lses;

  // What target_error goes by.
  ScratchVector<float> coarse_outputs;
  ScratchVector<float> coarse_lses;
  std::vector<float> inverse_squares;
  std::vector<float> logit_spreads;
  std::vector<float> cluster_variances;
  std::vector<float> hidden_variances;
  std::vector<float> key_spreads;
  std::vector<RiskLimit> risk_limits;
  std::vector<TokenRisk> token_risk;

  // Tasks of one call to the backend.
  struct Flag {
    bool value = true;
  };
  std::vector<Flag> finite;  // per convert task
  std::vector<ConvertRowsTask> convert_tasks;
  std::vector<RotateRowsTask> rotate_tasks;
  std::vector<ScoreSupersTask> score_supers_tasks;
  std::vector<ScoreClustersTask> score_tasks;
  std::vector<SelectClustersTask> select_tasks;
  std::vector<ScoreTokensTask> score_tokens_tasks;
  std::vector<ChooseTokensTask> choose_tokens_tasks;
  std::vector<AttendRowsTask> attend_tasks;
  std::vector<EstimateClustersTask> estimate_tasks;
  std::vector<AttentionState> merge_states;
  std::vector<MergeStatesTask> merge_tasks;
};

// Adds what a (row, kv head) contributes; means are sums until a step is over.
void AddStats(const AttendStats& part, AttendStats* stats);

// When a miss_deadline that begins now is over.
BlockReader::TimePoint DeadlineAfter(absl::Duration wait);

// What a step runs on.
struct StepMachine {
  Executor& executor;
  Backend& backend;  // on its workers
  // The same on the thread that calls, while all workers are at work.
  Executor& own_thread;
  Backend& own_thread_backend;
};

// Answers the queries of a batch whose layer is pinned in workspace.batch.views.
//
// A row is attended exactly when the budget is everything, or no sealed segment lies wholly before
// it, or those that do have fewer than exact_below_tokens (>= 0); otherwise by zones: rank
// clusters, attend the steady and the retrieval zone, estimate the rest, merge. Threads: one Run at
// a time per workspace.
class AttendStep {
 public:
  // `fetch`: reads the tiers of sealed rows, where there are any; nullptr: see StepRows::Begin.
  AttendStep(const ModelSpec& model, const AttendOptions& options, const StepMachine& machine,
             AttendWorkspace& workspace, StepObserver& observer, int layer, BlockFetch* fetch,
             BlockReader::TimePoint deadline);

  // Converts and scales the queries into the workspace. INVALID_ARGUMENT for NaN or infinity.
  absl::Status LoadQueries(const TensorView& queries);

  // Fills the batch's outputs, lses and errors; adds to *stats.
  absl::Status Attend(AttendStats* stats);

  // Ranks only: the retrieval zone of every (row, kv head), in that order.
  absl::StatusOr<std::vector<RetrievedTokens>> Retrieve();

  // Writes outputs, log-sum-exps and error estimates to the caller's tensors.
  absl::Status StoreOutputs(const MutableTensorView& output, const PerHeadView& lse,
                            const PerHeadView& error_estimate);

 private:
  Backend& backend() const {
    Backend* const helped = lanes_ == nullptr ? nullptr : lanes_->helped_backend(lane_);
    return helped == nullptr ? backend_ : *helped;
  }
  PhaseSpan Span(Phase phase) const { return PhaseSpan(observer_, phase, layer_, num_rows_); }
  int64_t FirstState(const SequenceView& view, int kv_head, int64_t row) const {
    return (view.first_row * model_.num_kv_heads + kv_head * view.num_rows + row) * group_;
  }
  void StorePerHead(const std::vector<float>& states, float scale, const PerHeadView& to) const;
  bool IsExact(const SequenceView& view, int64_t row) const;

  // Lists what rows that end before last_end see, for each kv head; returns the first one's group.
  size_t AddExactGroups(const SequenceView& view, int64_t last_end);
  // Exact rows of a sequence: [first_row, first_row + num_rows).
  void AddExactRows(const SequenceView& view, int64_t first_row, int64_t num_rows);
  absl::Status FlushExact();
  void ClearExact();

  // A lane's part of `parent`: rows of its batch, on the worker's thread and those that help.
  AttendStep(const AttendStep& parent, int lane);
  // Answers zone_rows, and clears them.
  absl::Status FlushZoneRows(AttendStats* stats);
  bool SharesOutZoneRows() const;
  absl::Status AnswerInLanes(AttendStats* stats);

  void AddUnit(const ZoneRow& zone_row);
  // Decides what the units read. `ranked`: list the retrieval or sketch zone best first, not only
  // mark it.
  absl::Status RankUnits(bool ranked);
  absl::Status OpenSupers();
  absl::Status ScoreUnits();
  absl::Status MeasureUnits();
  absl::Status SelectUnits(bool ranked);
  // Tokens in the retrieval or the sketch zone, as far as budgets go.
  int64_t SelectedTokens(const ZoneUnit& unit) const;
  // And in the estimation zone.
  int64_t AnsweredTokens(const ZoneUnit& unit) const;
  void AddSketch(ZoneUnit& unit);
  // The clusters of a part of the unit that have chosen tokens. One of which more than half was
  // chosen is one run of bytes, and its few others would be answered by what is left of a rounded
  // mean: the others are chosen too.
  void ListChosen(ZoneUnit& unit, const SketchPart& part, const ClusterIndex& index,
                  ChosenClusters& chosen);
  absl::Status RankTokens();
  MassEstimate mass() const {
    return options_.zones == Zones::kPaper ? MassEstimate::kLowerBound : options_.mass;
  }
  Ranking ranking() const {
    return options_.zones == Zones::kPaper ? Ranking::kCentroid : Ranking::kOptimistic;
  }
  RetrievedTokens RetrievedBy(ZoneUnit& unit);
  absl::Status FlushUnits(AttendStats* stats);
  size_t WaveSize() const;
  // Attends and estimates those of the wave.
  absl::Status AnswerUnits();
  size_t NumberOf(const ZoneUnit& unit) const {
    return static_cast<size_t>(&unit - ws_.units.data());
  }
  bool OpensAll() const { return options_.open.is_ratio() && options_.open.ratio() >= 1.0; }
  bool HasTarget() const { return options_.target_error > 0.0; }
  int64_t AddParts(int64_t num_parts);
  void CompactValues(const ZoneUnit& unit);
  void AddSteadyRanges(const ZoneUnit& unit, RowGroup& rows);
  void AddRetrievedRanges(ZoneUnit& unit, RowGroup& rows);
  void AddChosenRanges(ZoneUnit& unit, RowGroup& rows);
  // Lists the rows of a group of each unit, in parallel.
  void AddGroups(PieceGroup ZoneUnit::*group,
                 absl::FunctionRef<void(ZoneUnit& unit, RowGroup& rows)> fill);
  absl::Status AttendPieces(PieceGroup ZoneUnit::*group);
  // Attends what exact_parts list, in rounds: what is here, then what has come meanwhile.
  absl::Status AttendParts();
  absl::Status AttendPiecesInWork();
  absl::Status AwaitRows();
  void GiveUp(size_t piece, bool failed_only);
  absl::Status EstimateUnits(bool coarse);
  void AddStates(int64_t first_part, int64_t num_parts);
  void AddStates(const PieceGroup& group) {
    AddStates(group.first_part, static_cast<int64_t>(group.num_pieces));
  }
  absl::Status MergeUnits();
  AttendStats AccountUnit(const ZoneUnit& unit);
  int64_t IndexBytesRead(const ZoneUnit& unit) const;
  double PredictError(const ZoneUnit& unit, int query) const;
  void ClearUnits();

  void AccountExactRow(const SequenceView& view, int64_t row, AttendStats* stats) const;

  const ModelSpec& model_;
  const AttendOptions& options_;
  const StepMachine& machine_;
  Executor& executor_;
  Backend& backend_;
  Lanes* const lanes_ = nullptr;  // of a lane: all of them
  const int lane_ = 0;
  AttendWorkspace& ws_;
  StepBatch& batch_;
  StepObserver* const observer_;
  const int layer_;
  const int group_;
  const int64_t kv_bytes_;  // K and V of one token and kv head
  const BlockReader::TimePoint deadline_;
  const bool has_tiers_;
  int64_t num_rows_ = 0;       // of the batch
  absl::Span<ZoneUnit> wave_;  // units that are ranked or answered together
};

}  // namespace wavekv

#endif  // WAVEKV_API_ATTEND_STEP_H_
