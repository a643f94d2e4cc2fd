#include "api/attend_step.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/time/time.h"
#include "fmt/format.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

// Queries that one exact task handles: enough to reuse a tile of keys, few enough to share out.
constexpr int64_t kQueryBlock = 256;

// Partial results are merged when they reach this many floats (32 MiB), whatever the size of the
// batch.
constexpr int64_t kPartialFloatsMax = int64_t{8} << 20;

// From so many tokens on to list the rows of a kv head takes longer than to wake a thread.
constexpr int64_t kListedTogether = 8192;

// Rows that are answered by zones, times kv heads, that are listed before they are answered.
constexpr size_t kZoneRowsMax = 4096;

}  // namespace

void AddStats(const AttendStats& part, AttendStats* stats) {
  stats->tokens_visible += part.tokens_visible;
  stats->tokens_exact += part.tokens_exact;
  stats->tokens_retrieved += part.tokens_retrieved;
  stats->tokens_sketched += part.tokens_sketched;
  stats->tokens_estimated += part.tokens_estimated;
  stats->tokens_degraded += part.tokens_degraded;
  stats->clusters_scored += part.clusters_scored;
  stats->clusters_retrieved += part.clusters_retrieved;
  stats->bytes_dense += part.bytes_dense;
  stats->bytes_read += part.bytes_read;
  stats->estimated_mass_mean += part.estimated_mass_mean;
  stats->estimated_mass_max = std::max(stats->estimated_mass_max, part.estimated_mass_max);
  stats->error_estimate_mean += part.error_estimate_mean;
  stats->error_estimate_max = std::max(stats->error_estimate_max, part.error_estimate_max);
}

BlockReader::TimePoint DeadlineAfter(absl::Duration wait) {
  // Longer ones overflow the clock.
  constexpr absl::Duration kLongest = absl::Hours(24 * 365);
  return wait > kLongest ? BlockReader::TimePoint::max()
                         : std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(wait);
}

AttendStep::AttendStep(const ModelSpec& model, const AttendOptions& options,
                       const StepMachine& machine, AttendWorkspace& workspace,
                       StepObserver& observer, int layer, BlockFetch* fetch,
                       BlockReader::TimePoint deadline)
    : model_(model),
      options_(options),
      machine_(machine),
      executor_(machine.executor),
      backend_(machine.backend),
      ws_(workspace),
      batch_(workspace.batch),
      observer_(&observer),
      layer_(layer),
      group_(model.gqa_group_size()),
      kv_bytes_(model.key_row_bytes() + model.value_row_bytes()),
      deadline_(deadline),
      has_tiers_(fetch != nullptr) {
  ws_.rows.Begin(fetch);
  for (const SequenceView& view : batch_.views) num_rows_ += view.num_rows;
}

absl::Status AttendStep::LoadQueries(const TensorView& queries) {
  const PhaseSpan span = Span(Phase::kLoad);
  // What a call left behind that failed half-way.
  ClearExact();
  ClearUnits();
  ws_.zone_rows.clear();
  batch_.queries.resize(queries.num_rows * model_.num_q_heads * model_.head_dim_k);
  ws_.convert_tasks.clear();
  ws_.finite.assign(batch_.views.size() * model_.num_q_heads, {});
  const int64_t element_bytes = DTypeBytes(queries.dtype);
  for (size_t sequence = 0; sequence < batch_.views.size(); ++sequence) {
    const SequenceView& view = batch_.views[sequence];
    // Strides of a tensor without rows mean nothing: they are not computed with.
    if (view.num_rows == 0) continue;
    for (int head = 0; head < model_.num_q_heads; ++head) {
      ConvertRowsTask task;
      task.source =
          static_cast<const std::byte*>(queries.data) +
          (view.first_row * queries.row_stride + head * queries.head_stride) * element_bytes;
      task.source_dtype = queries.dtype;
      task.source_stride = queries.row_stride;
      task.target = batch_.queries.data() +
                    (FirstState(view, head / group_, 0) + head % group_) * model_.head_dim_k;
      task.target_stride = int64_t{group_} * model_.head_dim_k;
      task.num_rows = view.num_rows;
      task.row_elements = model_.head_dim_k;
      task.scale = model_.scale();
      task.all_finite = &ws_.finite[sequence * model_.num_q_heads + head].value;
      ws_.convert_tasks.push_back(task);
    }
  }
  WAVEKV_RETURN_IF_ERROR(backend().ConvertRows(ws_.convert_tasks));
  const auto bad = std::find_if(ws_.finite.begin(), ws_.finite.end(),
                                [](const AttendWorkspace::Flag& flag) { return !flag.value; });
  if (bad == ws_.finite.end()) return absl::OkStatus();
  const int64_t at = bad - ws_.finite.begin();
  return absl::InvalidArgumentError(
      fmt::format("queries must be finite, got NaN or infinity in query head {} of sequence {} of "
                  "the batch",
                  at % model_.num_q_heads, at / model_.num_q_heads));
}

absl::Status AttendStep::Attend(AttendStats* stats) {
  batch_.outputs.resize(num_rows_ * model_.num_q_heads * model_.head_dim_v);
  batch_.lses.resize(num_rows_ * model_.num_q_heads);
  batch_.errors.assign(num_rows_ * model_.num_q_heads, 0.0f);

  for (const SequenceView& view : batch_.views) {
    // Later rows see more: the exact ones, if any, come first.
    int64_t row = 0;
    while (row < view.num_rows && IsExact(view, row)) AccountExactRow(view, row++, stats);
    if (row > 0) AddExactRows(view, 0, row);
    if (static_cast<int64_t>(ws_.partial_lses.size()) * model_.head_dim_v > kPartialFloatsMax) {
      WAVEKV_RETURN_IF_ERROR(FlushExact());
    }
    for (; row < view.num_rows; ++row) {
      for (int head = 0; head < model_.num_kv_heads; ++head) {
        ws_.zone_rows.push_back({&view, row, head});
      }
      if (ws_.zone_rows.size() >= kZoneRowsMax) {
        WAVEKV_RETURN_IF_ERROR(FlushExact());
        WAVEKV_RETURN_IF_ERROR(FlushZoneRows(stats));
      }
    }
  }
  WAVEKV_RETURN_IF_ERROR(FlushExact());
  WAVEKV_RETURN_IF_ERROR(FlushZoneRows(stats));
  stats->rows += num_rows_;
  const double heads = static_cast<double>(num_rows_) * model_.num_q_heads;
  if (heads > 0) {
    stats->estimated_mass_mean /= heads;
    stats->error_estimate_mean /= heads;
  }
  return absl::OkStatus();
}

absl::Status AttendStep::FlushZoneRows(AttendStats* stats) {
  if (SharesOutZoneRows()) {
    WAVEKV_RETURN_IF_ERROR(AnswerInLanes(stats));
  } else {
    for (const ZoneRow& zone_row : ws_.zone_rows) {
      AddUnit(zone_row);
      if (static_cast<int64_t>(ws_.clusters.sizes.size()) * group_ > kPartialFloatsMax) {
        WAVEKV_RETURN_IF_ERROR(FlushUnits(stats));
      }
    }
    WAVEKV_RETURN_IF_ERROR(FlushUnits(stats));
  }
  ws_.zone_rows.clear();
  return absl::OkStatus();
}

// Whether a worker takes one (row, kv head) from its queries to its output, and then the next: what
// is computed on the way stays in the worker's cache. Otherwise workers share each stage of all of
// them, which keeps all busy where rows are few, and with tiers rows are read while others are
// ranked.
bool AttendStep::SharesOutZoneRows() const {
  return !has_tiers_ && !ws_.zone_rows.empty() &&
         static_cast<int64_t>(ws_.zone_rows.size()) >= executor_.num_workers();
}

AttendStep::AttendStep(const AttendStep& parent, int lane)
    : model_(parent.model_),
      options_(parent.options_),
      machine_(parent.machine_),
      executor_(parent.machine_.own_thread),
      backend_(parent.machine_.own_thread_backend),
      lanes_(parent.ws_.lanes.get()),
      lane_(lane),
      ws_(*parent.ws_.lane_workspaces[lane]),
      batch_(parent.batch_),
      // Phases are those of one lane: they take place at the same time.
      observer_(lane == 0 ? parent.observer_ : nullptr),
      layer_(parent.layer_),
      group_(parent.group_),
      kv_bytes_(parent.kv_bytes_),
      deadline_(parent.deadline_),
      has_tiers_(false),
      num_rows_(parent.num_rows_) {
  // What a call left behind that failed half-way.
  ClearUnits();
  ws_.rows.Begin(/*fetch=*/nullptr);
}

absl::Status AttendStep::AnswerInLanes(AttendStats* stats) {
  if (ws_.lanes == nullptr) ws_.lanes = std::make_unique<Lanes>(executor_.num_workers());
  while (ws_.lane_workspaces.size() < static_cast<size_t>(executor_.num_workers())) {
    ws_.lane_workspaces.push_back(std::make_unique<AttendWorkspace>());
  }
  // Of each row, so that sums do not depend on which lane answered it.
  ws_.lane_stats.assign(ws_.zone_rows.size(), AttendStats());
  ws_.lane_statuses.assign(ws_.zone_rows.size(), absl::OkStatus());
  // Long ones first: the short ones even out what they leave.
  ws_.lane_order.resize(ws_.zone_rows.size());
  std::iota(ws_.lane_order.begin(), ws_.lane_order.end(), 0);
  const auto length = [&](int64_t i) {
    return ws_.zone_rows[i].view->VisibleEnd(ws_.zone_rows[i].row);
  };
  std::sort(ws_.lane_order.begin(), ws_.lane_order.end(), [&](int64_t a, int64_t b) {
    return std::pair(-length(a), a) < std::pair(-length(b), b);
  });
  ws_.lanes->ForEach(executor_, static_cast<int64_t>(ws_.zone_rows.size()),
                     [&](int64_t item, int number) {
                       const int64_t i = ws_.lane_order[item];
                       AttendStep lane(*this, number);
                       lane.AddUnit(ws_.zone_rows[i]);
                       ws_.lane_statuses[i] = lane.FlushUnits(&ws_.lane_stats[i]);
                     });
  for (size_t i = 0; i < ws_.zone_rows.size(); ++i) {
    WAVEKV_RETURN_IF_ERROR(ws_.lane_statuses[i]);
    AddStats(ws_.lane_stats[i], stats);
  }
  return absl::OkStatus();
}

bool AttendStep::IsExact(const SequenceView& view, int64_t row) const {
  if (!HasTarget() && options_.retrieval.is_ratio() && options_.retrieval.ratio() >= 1.0) {
    return true;
  }
  const int64_t visible_end = view.VisibleEnd(row);
  int64_t sealed_tokens = 0;
  for (size_t i = 0; i < view.pins.size(); ++i) {
    if (!view.AnswersByZones(i, visible_end)) continue;
    const Segment& segment = *view.contents.segments[i];
    sealed_tokens += segment.end() - segment.begin();
    if (sealed_tokens >= options_.exact_below_tokens) return false;
  }
  return true;
}

size_t AttendStep::AddExactGroups(const SequenceView& view, int64_t last_end) {
  const size_t first_group = ws_.rows.AddGroup(kExactPieceTokens);
  for (int head = 1; head < model_.num_kv_heads; ++head) ws_.rows.AddGroup(kExactPieceTokens);
  const auto list = [&](int64_t head, int /*worker*/) {
    RowGroup& rows = ws_.rows.group(first_group + head);
    AddRows(view, static_cast<int>(head), last_end, /*leave_out_zones=*/false, rows);
    rows.End();
  };
  if (last_end >= kListedTogether) {
    executor_.ParallelFor(model_.num_kv_heads, list);
  } else {
    for (int head = 0; head < model_.num_kv_heads; ++head) list(head, 0);
  }
  ws_.rows.EndGroups();
  return first_group;
}

void AttendStep::AddExactRows(const SequenceView& view, int64_t first_row, int64_t num_rows) {
  const int64_t first_visible_end = static_cast<int64_t>(ws_.visible_ends.size());
  for (int64_t row = first_row; row < first_row + num_rows; ++row) {
    ws_.visible_ends.insert(ws_.visible_ends.end(), group_, view.VisibleEnd(row));
  }
  const int64_t last_end = view.VisibleEnd(first_row + num_rows - 1);
  const bool masked = view.causal && (num_rows > 1 || last_end < view.contents.length);
  const int64_t block_rows = std::max<int64_t>(1, kQueryBlock / group_);
  const size_t first_group = AddExactGroups(view, last_end);
  for (int head = 0; head < model_.num_kv_heads; ++head) {
    const size_t group = first_group + head;
    const size_t first_piece = ws_.rows.first_piece(group);
    const size_t end_piece = first_piece + ws_.rows.group(group).pieces().size();
    for (int64_t row = first_row; row < first_row + num_rows; row += block_rows) {
      const int64_t rows = std::min(block_rows, first_row + num_rows - row);
      const int64_t block_end = view.VisibleEnd(row + rows - 1);
      ExactPart part;
      part.first_state = FirstState(view, head, row);
      part.num_queries = static_cast<int>(rows * group_);
      if (masked) part.first_visible_end = first_visible_end + (row - first_row) * group_;
      const size_t first_part = ws_.exact_parts.size();
      for (part.piece = first_piece; part.piece < end_piece; ++part.piece) {
        const bool sees_none = ws_.rows.piece(part.piece).position_begin >= block_end;
        if (sees_none && part.piece > first_piece) continue;
        ws_.exact_parts.push_back(part);
      }
      if (ws_.exact_parts.size() - first_part == 1) continue;
      for (size_t i = first_part; i < ws_.exact_parts.size(); ++i) {
        ws_.exact_parts[i].first_partial = static_cast<int64_t>(ws_.partial_lses.size());
        ws_.partial_lses.resize(ws_.partial_lses.size() + part.num_queries);
      }
    }
  }
}

absl::Status AttendStep::FlushExact() {
  if (ws_.exact_parts.empty()) return absl::OkStatus();
  WAVEKV_RETURN_IF_ERROR(AttendParts());

  const PhaseSpan span = Span(Phase::kMerge);
  ws_.merge_states.clear();
  ws_.merge_tasks.clear();
  for (const ExactPart& part : ws_.exact_parts) {
    if (part.first_partial < 0) continue;
    ws_.merge_states.push_back({ws_.partial_outputs.data() + part.first_partial * model_.head_dim_v,
                                ws_.partial_lses.data() + part.first_partial});
  }
  size_t next_state = 0;
  for (size_t first = 0; first < ws_.exact_parts.size();) {
    const ExactPart& part = ws_.exact_parts[first];
    size_t last = first + 1;
    if (part.first_partial >= 0) {
      while (last < ws_.exact_parts.size() &&
             ws_.exact_parts[last].first_state == part.first_state) {
        ++last;
      }
      ws_.merge_tasks.push_back(
          {absl::MakeConstSpan(ws_.merge_states).subspan(next_state, last - first),
           part.num_queries, model_.head_dim_v,
           batch_.outputs.data() + part.first_state * model_.head_dim_v,
           batch_.lses.data() + part.first_state});
      next_state += last - first;
    }
    first = last;
  }
  WAVEKV_RETURN_IF_ERROR(backend().MergeStates(ws_.merge_tasks));
  ClearExact();
  return absl::OkStatus();
}

absl::Status AttendStep::AttendParts() {
  ws_.partial_outputs.resize(ws_.partial_lses.size() * model_.head_dim_v);
  ws_.first_parts.assign(ws_.rows.num_pieces(), -1);
  ws_.pieces_to_come.clear();
  for (size_t i = ws_.exact_parts.size(); i > 0; --i) {
    ExactPart& part = ws_.exact_parts[i - 1];
    part.next = std::exchange(ws_.first_parts[part.piece], static_cast<int64_t>(i - 1));
    if (part.next < 0) ws_.pieces_to_come.push_back(part.piece);
  }
  // Rows are requested in this order, and there is room for a piece at least: the first one that
  // is not here always comes.
  std::sort(ws_.pieces_to_come.begin(), ws_.pieces_to_come.end());
  while (!ws_.pieces_to_come.empty()) {
    if (ws_.rows.has_missing()) ws_.rows.Request();
    // In place, as std::stable_partition would not do it.
    ws_.pieces_in_work.clear();
    size_t num_to_come = 0;
    for (const size_t piece : ws_.pieces_to_come) {
      if (ws_.rows.is_here(piece)) {
        ws_.pieces_in_work.push_back(piece);
      } else {
        ws_.pieces_to_come[num_to_come++] = piece;
      }
    }
    ws_.pieces_to_come.resize(num_to_come);
    if (ws_.pieces_in_work.empty()) {
      WAVEKV_RETURN_IF_ERROR(AwaitRows());
    } else {
      WAVEKV_RETURN_IF_ERROR(AttendPiecesInWork());
    }
  }
  return absl::OkStatus();
}

absl::Status AttendStep::AttendPiecesInWork() {
  const PhaseSpan span = Span(Phase::kRead);
  ws_.attend_tasks.clear();
  for (const size_t piece : ws_.pieces_in_work) {
    for (int64_t i = ws_.first_parts[piece]; i >= 0; i = ws_.exact_parts[i].next) {
      const ExactPart& part = ws_.exact_parts[i];
      const bool only = part.first_partial < 0;
      AttendRowsTask task;
      task.queries = batch_.queries.data() + part.first_state * model_.head_dim_k;
      task.num_queries = part.num_queries;
      task.query_scale = model_.scale();
      if (part.first_visible_end >= 0) {
        task.visible_end = ws_.visible_ends.data() + part.first_visible_end;
      }
      task.shape = {model_.head_dim_k, model_.head_dim_v, model_.kv_dtype};
      task.ranges = ws_.rows.ranges(piece);
      task.output = only ? batch_.outputs.data() + part.first_state * model_.head_dim_v
                         : ws_.partial_outputs.data() + part.first_partial * model_.head_dim_v;
      task.lse = only ? batch_.lses.data() + part.first_state
                      : ws_.partial_lses.data() + part.first_partial;
      ws_.attend_tasks.push_back(task);
    }
  }
  WAVEKV_RETURN_IF_ERROR(backend().AttendRows(ws_.attend_tasks));
  for (const size_t piece : ws_.pieces_in_work) ws_.rows.Release(piece);
  return absl::OkStatus();
}

// With a miss_deadline, rows that cannot be had are answered as if they had not been chosen.
absl::Status AttendStep::AwaitRows() {
  const PhaseSpan span = Span(Phase::kFetch);
  const bool in_time = ws_.rows.Wait(deadline_);
  if (in_time && ws_.rows.failure().ok()) return absl::OkStatus();
  if (options_.miss_deadline == absl::InfiniteDuration()) {
    // Rather than to wait for ever.
    if (!in_time && ws_.rows.failure().ok()) {
      return absl::InternalError("rows that are missing were not asked for");
    }
    return ws_.rows.failure();
  }
  for (const size_t piece : ws_.pieces_to_come) {
    if (ws_.exact_parts[ws_.first_parts[piece]].unit >= 0) GiveUp(piece, /*failed_only=*/in_time);
    if (ws_.rows.is_here(piece)) continue;
    if (ws_.rows.has_failed(piece)) return ws_.rows.failure();
    if (in_time) continue;
    return absl::DeadlineExceededError(
        fmt::format("miss_deadline: rows that are to be attended exactly had not come after {}",
                    absl::FormatDuration(options_.miss_deadline)));
  }
  return absl::OkStatus();
}

void AttendStep::GiveUp(size_t piece, bool failed_only) {
  ZoneUnit& unit = ws_.units[ws_.exact_parts[ws_.first_parts[piece]].unit];
  ws_.late.clear();
  ws_.rows.GiveUp(piece, failed_only, &ws_.late);
  for (const StepRows::Late& late : ws_.late) {
    if (options_.zones == Zones::kSketch) {
      std::fill_n(ws_.chosen.data() + late.item + late.first, late.num_tokens, uint8_t{0});
      unit.num_chosen -= late.num_tokens;
      unit.num_degraded += late.num_tokens;
    } else {
      ws_.clusters.zones[late.item] = Zone::kEstimation;
      unit.num_degraded += ws_.clusters.sizes[late.item];
    }
  }
}

void AttendStep::ClearExact() {
  ws_.exact_parts.clear();
  ws_.rows.Clear();
  ws_.visible_ends.clear();
  ws_.partial_lses.clear();
}

void AttendStep::AccountExactRow(const SequenceView& view, int64_t row, AttendStats* stats) const {
  const int64_t tokens = view.VisibleEnd(row) * model_.num_kv_heads;
  stats->tokens_visible += tokens;
  stats->tokens_exact += tokens;
  stats->bytes_dense += tokens * kv_bytes_;
  stats->bytes_read += tokens * kv_bytes_;
}

void AttendStep::StorePerHead(const std::vector<float>& states, float scale,
                              const PerHeadView& to) const {
  if (to.data == nullptr) return;
  for (const SequenceView& view : batch_.views) {
    for (int head = 0; head < model_.num_q_heads; ++head) {
      for (int64_t row = 0; row < view.num_rows; ++row) {
        to.data[(view.first_row + row) * to.row_stride + head * to.head_stride] =
            states[FirstState(view, head / group_, row) + head % group_] * scale;
      }
    }
  }
}

absl::Status AttendStep::StoreOutputs(const MutableTensorView& output, const PerHeadView& lse,
                                      const PerHeadView& error_estimate) {
  const PhaseSpan span = Span(Phase::kStore);
  StorePerHead(batch_.lses, options_.lse_base == LseBase::k2 ? 1.0f / std::log(2.0f) : 1.0f, lse);
  StorePerHead(batch_.errors, 1.0f, error_estimate);
  ws_.convert_tasks.clear();
  const int64_t element_bytes = DTypeBytes(output.dtype);
  for (const SequenceView& view : batch_.views) {
    if (view.num_rows == 0) continue;
    for (int head = 0; head < model_.num_q_heads; ++head) {
      const int64_t first_state = FirstState(view, head / group_, 0) + head % group_;
      ConvertRowsTask task;
      task.source = batch_.outputs.data() + first_state * model_.head_dim_v;
      task.source_stride = int64_t{group_} * model_.head_dim_v;
      task.target =
          static_cast<std::byte*>(output.data) +
          (view.first_row * output.row_stride + head * output.head_stride) * element_bytes;
      task.target_dtype = output.dtype;
      task.target_stride = output.row_stride;
      task.num_rows = view.num_rows;
      task.row_elements = model_.head_dim_v;
      ws_.convert_tasks.push_back(task);
    }
  }
  return backend().ConvertRows(ws_.convert_tasks);
}

}  // namespace wavekv
