// The part of AttendStep that answers rows by zones: attend, estimate, merge.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "api/attend_step.h"
#include "storage/status_macros.h"

namespace wavekv {

void AttendStep::AddUnit(const ZoneRow& zone_row) {
  const SequenceView& view = *zone_row.view;
  ZoneUnit unit;
  unit.view = &view;
  unit.row = zone_row.row;
  unit.kv_head = zone_row.kv_head;
  unit.visible_end = view.VisibleEnd(zone_row.row);
  unit.first_state = FirstState(view, zone_row.kv_head, zone_row.row);
  unit.first_index = static_cast<int64_t>(ws_.indexes.size());
  unit.first_super = ws_.supers.size();
  unit.first_cluster = ws_.clusters.size();
  for (size_t i = 0; i < view.pins.size(); ++i) {
    if (!view.AnswersByZones(i, unit.visible_end)) continue;
    const SealedHead& sealed = view.pins[i].sealed->heads[zone_row.kv_head];
    const ClusterIndex& index = sealed.index;
    ws_.heads.push_back(&sealed);
    ws_.indexes.push_back(&index);
    unit.sealed_tokens += index.num_tokens;
    const size_t first = ws_.clusters.sizes.size();
    ws_.clusters.sizes.resize(first + index.num_clusters);
    for (int64_t cluster = 0; cluster < index.num_clusters; ++cluster) {
      ws_.clusters.sizes[first + cluster] = static_cast<uint32_t>(index.cluster_size(cluster));
    }
    if (OpensAll()) continue;
    for (int64_t super = 0; super < index.num_supers; ++super) {
      ws_.supers.sizes.push_back(static_cast<uint32_t>(index.super_size(super)));
    }
  }
  unit.num_indexes = static_cast<int64_t>(ws_.indexes.size()) - unit.first_index;
  unit.num_supers = ws_.supers.size() - unit.first_super;
  unit.num_clusters = ws_.clusters.size() - unit.first_cluster;
  ws_.units.push_back(unit);
}

int64_t AttendStep::AddParts(int64_t num_parts) {
  const auto first = static_cast<int64_t>(ws_.partial_lses.size()) / group_;
  ws_.partial_lses.resize((first + num_parts) * group_);
  return first;
}

// In waves, if rows are likely to be missing: while those of one are read, the next is ranked. With
// a target all are measured at once.
size_t AttendStep::WaveSize() const {
  constexpr size_t kWaves = 4;
  if (HasTarget() || !ws_.rows_were_missing) return ws_.units.size();
  return (ws_.units.size() + kWaves - 1) / kWaves;
}

absl::Status AttendStep::FlushUnits(AttendStats* stats) {
  if (ws_.units.empty()) return absl::OkStatus();
  auto to_rank = absl::MakeSpan(ws_.units);
  absl::Span<ZoneUnit> ranked;
  for (const size_t wave_size = WaveSize(); !to_rank.empty();) {
    wave_ = to_rank.subspan(0, wave_size);
    to_rank.remove_prefix(wave_.size());
    WAVEKV_RETURN_IF_ERROR(RankUnits(/*ranked=*/false));
    AddGroups(&ZoneUnit::read, [&](ZoneUnit& unit, RowGroup& rows) {
      AddRetrievedRanges(unit, rows);
      if (!HasTarget()) AddSteadyRanges(unit, rows);
    });
    if (ws_.rows.has_missing()) ws_.rows.Request();
    const absl::Span<ZoneUnit> next = std::exchange(ranked, wave_);
    wave_ = next;
    if (!wave_.empty()) WAVEKV_RETURN_IF_ERROR(AnswerUnits());
  }
  wave_ = ranked;
  WAVEKV_RETURN_IF_ERROR(AnswerUnits());
  WAVEKV_RETURN_IF_ERROR(MergeUnits());
  for (const ZoneUnit& unit : ws_.units) AddStats(AccountUnit(unit), stats);
  ws_.rows_were_missing = ws_.rows.has_missing();
  ClearUnits();
  return absl::OkStatus();
}

absl::Status AttendStep::AnswerUnits() {
  WAVEKV_RETURN_IF_ERROR(AttendPieces(&ZoneUnit::read));
  for (const ZoneUnit& unit : wave_) {
    if (unit.num_degraded > 0) CompactValues(unit);
  }
  return EstimateUnits(/*coarse=*/false);
}

// Without those of tokens that came too late.
void AttendStep::CompactValues(const ZoneUnit& unit) {
  if (options_.zones != Zones::kSketch) return;
  for (int64_t i = unit.first_index; i < unit.first_index + unit.num_indexes; ++i) {
    const SketchPart& part = ws_.sketch_parts[i];
    ws_.rows.group(unit.read.group)
        .CompactValues(part.first_value, static_cast<int64_t>(part.num_values));
  }
}

void AttendStep::AddSteadyRanges(const ZoneUnit& unit, RowGroup& rows) {
  AddRows(*unit.view, unit.kv_head, unit.visible_end, /*leave_out_zones=*/true, rows);
}

// Read in the order of memory, not of rank: neighbours share pages, and the reduction order is
// fixed.
void AttendStep::AddRetrievedRanges(ZoneUnit& unit, RowGroup& rows) {
  if (options_.zones == Zones::kSketch) return AddChosenRanges(unit, rows);
  int64_t cluster = unit.first_cluster;
  for (int64_t i = 0; i < unit.num_indexes; ++i) {
    const ClusterIndex& index = *ws_.indexes[unit.first_index + i];
    for (int64_t c = 0; c < index.num_clusters; ++c, ++cluster) {
      if (ws_.clusters.zones[cluster] != Zone::kRetrieval) continue;
      const SealedHead* head = ws_.heads[unit.first_index + i];
      rows.Add({head, c, 0, index.cluster_size(c), /*item=*/cluster});
    }
  }
}

void AttendStep::AddGroups(PieceGroup ZoneUnit::*group,
                           absl::FunctionRef<void(ZoneUnit& unit, RowGroup& rows)> fill) {
  for (ZoneUnit& unit : wave_) (unit.*group).group = ws_.rows.AddGroup(kZonePieceTokens);
  executor_.ParallelFor(static_cast<int64_t>(wave_.size()), [&](int64_t i, int) {
    ZoneUnit& unit = wave_[i];
    RowGroup& rows = ws_.rows.group((unit.*group).group);
    fill(unit, rows);
    rows.End();
  });
  ws_.rows.EndGroups();
  for (ZoneUnit& unit : wave_) {
    PieceGroup& pieces = unit.*group;
    pieces.first_piece = ws_.rows.first_piece(pieces.group);
    pieces.num_pieces = ws_.rows.group(pieces.group).pieces().size();
    pieces.first_part = AddParts(static_cast<int64_t>(pieces.num_pieces));
  }
}

void AttendStep::AddChosenRanges(ZoneUnit& unit, RowGroup& rows) {
  // Grows to the largest part that the thread has seen.
  thread_local ChosenClusters chosen;
  for (int64_t i = unit.first_index; i < unit.first_index + unit.num_indexes; ++i) {
    SketchPart& part = ws_.sketch_parts[i];
    part.first_value = rows.num_values();
    ListChosen(unit, part, *ws_.indexes[i], chosen);
    const int64_t first_item = unit.first_sketch_token + part.first_token;
    for (const auto& [cluster, first] : chosen.clusters) {
      rows.AddChosen(*ws_.heads[i], cluster, chosen.tokens, first, first_item + first);
    }
    part.num_values = rows.num_values() - part.first_value;
  }
}

void AttendStep::ListChosen(ZoneUnit& unit, const SketchPart& part, const ClusterIndex& index,
                            ChosenClusters& chosen) {
  uint8_t* const bytes = ws_.chosen.data() + unit.first_sketch_token + part.first_token;
  chosen.tokens.Load(bytes, part.num_tokens);
  chosen.clusters.resize(part.num_clusters + 1);
  // Without a branch, which would be hard to foretell: every other cluster has some.
  size_t count = 0;
  const uint32_t* const clusters = ws_.sketch_clusters.data() + part.first_cluster;
  for (int64_t i = 0, first = 0; i < part.num_clusters; ++i) {
    const int64_t size = index.cluster_size(clusters[i]);
    chosen.clusters[count] = {clusters[i], static_cast<uint32_t>(first)};
    count += chosen.tokens.Intersects(first, size) ? 1 : 0;
    first += size;
  }
  chosen.clusters.resize(count);
  for (const auto& [cluster, first] : chosen.clusters) {
    const int64_t size = index.cluster_size(cluster);
    const int64_t num_chosen = chosen.tokens.Count(first, size);
    if (2 * num_chosen <= size || num_chosen == size) continue;
    std::fill_n(bytes + first, size, uint8_t{1});
    chosen.tokens.Insert(first, size);
    unit.num_chosen += size - num_chosen;
  }
}

absl::Status AttendStep::AttendPieces(PieceGroup ZoneUnit::*group) {
  ws_.visible_ends.clear();
  ws_.exact_parts.clear();
  for (const ZoneUnit& unit : wave_) {
    const auto first_visible_end = static_cast<int64_t>(ws_.visible_ends.size());
    ws_.visible_ends.insert(ws_.visible_ends.end(), group_, unit.visible_end);
    ExactPart part;
    part.first_state = unit.first_state;
    part.num_queries = group_;
    // Only a row before the newest can meet a range that it does not see to the end.
    if (unit.visible_end < unit.view->contents.length) {
      part.first_visible_end = first_visible_end;
    }
    part.unit = static_cast<int64_t>(NumberOf(unit));
    for (size_t i = 0; i < (unit.*group).num_pieces; ++i) {
      part.piece = (unit.*group).first_piece + i;
      part.first_partial = ((unit.*group).first_part + static_cast<int64_t>(i)) * group_;
      ws_.exact_parts.push_back(part);
    }
  }
  WAVEKV_RETURN_IF_ERROR(AttendParts());
  ws_.exact_parts.clear();
  return absl::OkStatus();
}

// `coarse`: all from the log-masses and the value means of super-clusters, before zones are known.
absl::Status AttendStep::EstimateUnits(bool coarse) {
  const PhaseSpan span = Span(Phase::kEstimate);
  ws_.num_value_means.resize(ws_.indexes.size());
  ws_.num_super_value_means.resize(ws_.indexes.size());
  ws_.missing_lses.resize(ws_.indexes.size() * group_);
  ws_.value_variance.resize(ws_.indexes.size() * group_);
  ws_.estimate_tasks.clear();
  for (const ZoneUnit& unit : wave_) {
    int64_t cluster = 0;
    for (int64_t i = 0; i < unit.num_indexes; ++i) {
      const int64_t part = (unit.first_estimate + i) * group_;
      EstimateClustersTask task;
      task.queries = batch_.queries.data() + unit.first_state * model_.head_dim_k;
      task.num_queries = group_;
      task.index = ws_.indexes[unit.first_index + i];
      task.log_masses = ws_.clusters.log_masses.data() + unit.first_cluster * group_ + cluster;
      task.log_masses_stride = unit.num_clusters;
      task.mass = mass();
      task.zones = ws_.clusters.zones.data() + unit.first_cluster + cluster;
      if (options_.zones == Zones::kSketch && !coarse) {
        const int64_t token = ws_.sketch_parts[unit.first_index + i].first_token;
        const int64_t at = unit.first_sketch_token * group_ + token;
        task.token_masses = ws_.token_masses.data() + at;
        task.token_offsets = ws_.token_offsets.data() + (unit.first_index + i) * group_;
        task.token_stride = unit.num_sketch_tokens;
        task.chosen = ws_.chosen.data() + unit.first_sketch_token + token;
        task.chosen_values = ws_.rows.group(unit.read.group).value_rows() +
                             ws_.sketch_parts[unit.first_index + i].first_value;
      }
      task.output = ws_.partial_outputs.data() + part * model_.head_dim_v;
      task.lse = ws_.partial_lses.data() + part;
      if (!coarse) {
        task.num_value_means = &ws_.num_value_means[unit.first_index + i];
        task.num_super_value_means = &ws_.num_super_value_means[unit.first_index + i];
        task.missing_lse = ws_.missing_lses.data() + (unit.first_index + i) * group_;
        task.value_variance = ws_.value_variance.data() + (unit.first_index + i) * group_;
      }
      ws_.estimate_tasks.push_back(task);
      cluster += task.index->num_clusters;
    }
  }
  return backend().EstimateClusters(ws_.estimate_tasks);
}

void AttendStep::AddStates(int64_t first_part, int64_t num_parts) {
  for (int64_t i = 0; i < num_parts; ++i) {
    const int64_t part = (first_part + i) * group_;
    ws_.merge_states.push_back(
        {ws_.partial_outputs.data() + part * model_.head_dim_v, ws_.partial_lses.data() + part});
  }
}

absl::Status AttendStep::MergeUnits() {
  const PhaseSpan span = Span(Phase::kMerge);
  ws_.estimated_lses.resize(ws_.units.size() * group_);
  ws_.estimated_outputs.resize(ws_.units.size() * group_ * model_.head_dim_v);
  ws_.merge_states.clear();
  for (const ZoneUnit& unit : ws_.units) {
    AddStates(unit.steady);
    AddStates(unit.read);
    AddStates(unit.first_estimate, unit.num_indexes);
  }
  ws_.merge_tasks.clear();
  auto states = absl::MakeConstSpan(ws_.merge_states);
  for (size_t u = 0; u < ws_.units.size(); ++u) {
    const ZoneUnit& unit = ws_.units[u];
    const size_t num_exact = unit.steady.num_pieces + unit.read.num_pieces;
    const auto all = states.first(num_exact + unit.num_indexes);
    states.remove_prefix(all.size());
    ws_.merge_tasks.push_back({all, group_, model_.head_dim_v,
                               batch_.outputs.data() + unit.first_state * model_.head_dim_v,
                               batch_.lses.data() + unit.first_state});
    // The estimated part on its own, for the error estimate.
    ws_.merge_tasks.push_back({all.subspan(num_exact), group_, model_.head_dim_v,
                               ws_.estimated_outputs.data() + u * group_ * model_.head_dim_v,
                               ws_.estimated_lses.data() + u * group_});
  }
  return backend().MergeStates(ws_.merge_tasks);
}

AttendStats AttendStep::AccountUnit(const ZoneUnit& unit) {
  AttendStats stats;
  const bool sketch = options_.zones == Zones::kSketch;
  int64_t retrieved_tokens = unit.num_chosen;
  if (!sketch) {
    for (int64_t i = 0; i < unit.num_retrieved; ++i) {
      const int64_t cluster = unit.first_cluster + ws_.clusters.retrieved[unit.first_cluster + i];
      // But for those that came too late.
      if (ws_.clusters.zones[cluster] != Zone::kRetrieval) continue;
      retrieved_tokens += ws_.clusters.sizes[cluster];
    }
  }
  const int64_t exact_tokens = unit.visible_end - unit.sealed_tokens + retrieved_tokens;
  stats.tokens_visible += unit.visible_end;
  stats.tokens_exact += exact_tokens;
  stats.tokens_retrieved += retrieved_tokens;
  stats.tokens_sketched += unit.num_sketch_tokens;
  stats.tokens_estimated += unit.sealed_tokens - retrieved_tokens;
  stats.tokens_degraded += unit.num_degraded;
  stats.clusters_scored += unit.num_clusters;
  stats.clusters_retrieved += sketch ? 0 : unit.num_retrieved;
  stats.bytes_dense += unit.visible_end * kv_bytes_;
  stats.bytes_read += exact_tokens * kv_bytes_ + IndexBytesRead(unit);

  const auto u = static_cast<int64_t>(NumberOf(unit));
  for (int query = 0; query < group_; ++query) {
    const double mass = std::exp(static_cast<double>(ws_.estimated_lses[u * group_ + query]) -
                                 batch_.lses[unit.first_state + query]);
    const double error = PredictError(unit, query);
    batch_.errors[unit.first_state + query] = static_cast<float>(error);
    stats.estimated_mass_mean += mass;
    stats.estimated_mass_max = std::max(stats.estimated_mass_max, mass);
    stats.error_estimate_mean += error;
    stats.error_estimate_max = std::max(stats.error_estimate_max, error);
  }
  return stats;
}

// Of every super-cluster: its centroid, where its clusters begin, and its spreads. Of every
// cluster: size, offset, key spread and value spread, and of the opened ones the centroid. Of a
// segment: its mean key and value. Of the sketch zone: codes and their factors. And the value means
// that answered.
int64_t AttendStep::IndexBytesRead(const ZoneUnit& unit) const {
  int64_t bytes = unit.num_indexes * (model_.head_dim_k + model_.head_dim_v) * sizeof(float);
  const Zone* super_zones = ws_.supers.zones.data() + unit.first_super;
  for (int64_t i = unit.first_index; i < unit.first_index + unit.num_indexes; ++i) {
    const ClusterIndex& index = *ws_.indexes[i];
    int64_t num_opened = index.num_clusters;
    if (!OpensAll()) {
      for (int64_t s = 0; s < index.num_supers; ++s) {
        if (super_zones[s] == Zone::kSketch) continue;
        num_opened -= index.super_offsets[s + 1] - index.super_offsets[s];
      }
      super_zones += index.num_supers;
    }
    const int64_t scale_bytes = index.centroids.scales == nullptr ? 0 : sizeof(float);
    bytes +=
        index.num_clusters * 4 * sizeof(float) +
        num_opened * (index.centroids.row_bytes + scale_bytes) +
        index.num_supers * (index.super_centroids.row_bytes + scale_bytes + 3 * sizeof(float)) +
        ws_.num_value_means[i] * (index.value_means.row_bytes + scale_bytes) +
        ws_.num_super_value_means[i] * (index.super_value_means.row_bytes + scale_bytes);
    // Target_error took all super-clusters' value means for its first look.
    if (HasTarget()) {
      bytes += (index.num_supers - ws_.num_super_value_means[i]) *
               (index.super_value_means.row_bytes + scale_bytes);
    }
  }
  const ClusterIndex& first = *ws_.indexes[unit.first_index];
  const int64_t token_bytes = first.code_words() * sizeof(uint64_t) + sizeof(uint16_t);
  return bytes + unit.num_sketch_tokens * token_bytes;
}

double AttendStep::PredictError(const ZoneUnit& unit, int query) const {
  const auto u = static_cast<int64_t>(NumberOf(unit));
  const double lse = batch_.lses[unit.first_state + query];
  double missing = 0.0;
  double variance = 0.0;
  for (int64_t i = 0; i < unit.num_indexes; ++i) {
    const int64_t state = (unit.first_index + i) * group_ + query;
    const int64_t part = (unit.first_estimate + i) * group_ + query;
    const double share = std::exp(ws_.partial_lses[part] - lse);
    missing += std::exp(ws_.missing_lses[state] - lse);
    variance += share * share * ws_.value_variance[state];
  }
  // Missing mass would pull the output by missing / (1 + missing) of the way to its values, which
  // lie further out than the estimated ones.
  constexpr double kFurther = 1.7;
  const double pull = kFurther * (1.0 - 1.0 / (1.0 + missing));
  const float* output = batch_.outputs.data() + (unit.first_state + query) * model_.head_dim_v;
  const float* estimated = ws_.estimated_outputs.data() + (u * group_ + query) * model_.head_dim_v;
  double distance2 = 0.0;
  double norm2 = 0.0;
  for (int d = 0; d < model_.head_dim_v; ++d) {
    const double difference = static_cast<double>(estimated[d]) - output[d];
    distance2 += difference * difference;
    norm2 += static_cast<double>(output[d]) * output[d];
  }
  constexpr double kMost = std::numeric_limits<float>::max();
  if (norm2 == 0.0) return variance == 0.0 ? 0.0 : kMost;
  constexpr double kRounding = 1e-7;  // of sums in fp32, which exact attention has as well
  const double error2 = (pull * pull * distance2 + variance) / norm2 + kRounding * kRounding;
  return error2 < kMost ? std::sqrt(error2) : kMost;
}

void AttendStep::ClearUnits() {
  ws_.units.clear();
  ws_.indexes.clear();
  ws_.heads.clear();
  ws_.supers.sizes.clear();
  ws_.clusters.sizes.clear();
  ws_.sketch_parts.clear();
  ws_.sketch_clusters.clear();
  ws_.chosen.clear();
  ws_.rows.Clear();
  ws_.visible_ends.clear();
  ws_.partial_lses.clear();
}

}  // namespace wavekv
