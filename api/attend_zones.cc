// The part of AttendStep that answers rows by zones: rank, attend, estimate, merge.
#include <algorithm>
#include <cmath>
#include <limits>

#include "api/attend_step.h"
#include "storage/status_macros.h"

namespace wavekv {

void AttendStep::AddUnits(const SequenceView& view, int64_t row) {
  const int64_t visible_end = view.VisibleEnd(row);
  for (int head = 0; head < model_.num_kv_heads; ++head) {
    ZoneUnit unit;
    unit.view = &view;
    unit.row = row;
    unit.kv_head = head;
    unit.visible_end = visible_end;
    unit.first_state = FirstState(view, head, row);
    unit.first_index = static_cast<int64_t>(ws_.indexes.size());
    unit.first_cluster = static_cast<int64_t>(ws_.sizes.size());
    for (size_t i = 0; i < view.pins.size(); ++i) {
      if (!view.AnswersByZones(i, visible_end)) continue;
      const ClusterIndex& index = view.pins[i].sealed->heads[head].index;
      ws_.indexes.push_back(&index);
      unit.sealed_tokens += index.num_tokens;
      for (int64_t cluster = 0; cluster < index.num_clusters; ++cluster) {
        ws_.sizes.push_back(static_cast<uint32_t>(index.cluster_size(cluster)));
      }
    }
    unit.num_indexes = static_cast<int64_t>(ws_.indexes.size()) - unit.first_index;
    unit.num_clusters = static_cast<int64_t>(ws_.sizes.size()) - unit.first_cluster;
    ws_.units.push_back(unit);
  }
}

absl::StatusOr<std::vector<RetrievedTokens>> AttendStep::Retrieve() {
  std::vector<RetrievedTokens> all;
  for (const SequenceView& view : ws_.views) {
    for (int64_t row = 0; row < view.num_rows; ++row) AddUnits(view, row);
  }
  WAVEKV_RETURN_IF_ERROR(RankUnits(/*ranked=*/true));
  for (const ZoneUnit& unit : ws_.units) all.push_back(RetrievedBy(unit));
  ClearUnits();
  return all;
}

RetrievedTokens AttendStep::RetrievedBy(const ZoneUnit& unit) const {
  // Where the tokens of a cluster stand in `chosen`, by number of the cluster in the unit.
  std::vector<int64_t> first_tokens;
  if (options_.zones == Zones::kSketch) {
    int64_t token = unit.first_sketch_token;
    for (int64_t i = 0; i < unit.num_clusters; ++i) {
      first_tokens.push_back(token);
      if (ws_.zones[unit.first_cluster + i] == Zone::kSketch) {
        token += ws_.sizes[unit.first_cluster + i];
      }
    }
  }
  RetrievedTokens tokens;
  for (int64_t i = 0; i < unit.num_retrieved; ++i) {
    const uint32_t id = ws_.retrieved[unit.first_cluster + i];
    int64_t cluster = id;
    int64_t at = unit.first_index;
    while (cluster >= ws_.indexes[at]->num_clusters) cluster -= ws_.indexes[at++]->num_clusters;
    const ClusterIndex& index = *ws_.indexes[at];
    tokens.clusters.push_back({index.position_begin, cluster, index.cluster_size(cluster),
                               ws_.probabilities[unit.first_cluster + id]});
    const KvRange range = index.cluster_range(cluster);
    for (int64_t token = 0; token < range.num_tokens; ++token) {
      if (!first_tokens.empty() && ws_.chosen[first_tokens[id] + token] == 0) continue;
      tokens.positions.push_back(range.position_begin + range.positions[token]);
    }
  }
  return tokens;
}

absl::Status AttendStep::RankUnits(bool ranked) {
  const PhaseSpan span = Span(Phase::kRank);
  WAVEKV_RETURN_IF_ERROR(ScoreUnits());
  WAVEKV_RETURN_IF_ERROR(SelectUnits(ranked));
  if (options_.zones != Zones::kSketch) return absl::OkStatus();
  return RankTokens();
}

absl::Status AttendStep::ScoreUnits() {
  // Sized once all units are known, and not cleared: what is written first need not be zero.
  ws_.log_masses.resize(ws_.sizes.size() * group_);
  ws_.rank_scores.resize(ws_.sizes.size() * group_);
  ws_.rotated_queries.resize(ws_.units.size() * group_ * model_.head_dim_k);
  ws_.rotate_tasks.clear();
  ws_.score_tasks.clear();
  for (size_t u = 0; u < ws_.units.size(); ++u) {
    const ZoneUnit& unit = ws_.units[u];
    float* rotated = ws_.rotated_queries.data() + u * group_ * model_.head_dim_k;
    ws_.rotate_tasks.push_back({ws_.queries.data() + unit.first_state * model_.head_dim_k, rotated,
                                group_, model_.head_dim_k});
    const int64_t first_score = unit.first_cluster * group_;
    int64_t cluster = 0;
    for (int64_t i = 0; i < unit.num_indexes; ++i) {
      ScoreClustersTask score;
      score.queries = rotated;
      score.num_queries = group_;
      score.index = ws_.indexes[unit.first_index + i];
      score.log_masses = ws_.log_masses.data() + first_score + cluster;
      score.stride = unit.num_clusters;
      score.mass = mass();
      score.ranking = options_.zones == Zones::kPaper ? Ranking::kCentroid : Ranking::kOptimistic;
      score.rank_scores = ws_.rank_scores.data() + first_score + cluster;
      ws_.score_tasks.push_back(score);
      cluster += score.index->num_clusters;
    }
  }
  WAVEKV_RETURN_IF_ERROR(backend_.RotateRows(ws_.rotate_tasks));
  return backend_.ScoreClusters(ws_.score_tasks);
}

absl::Status AttendStep::SelectUnits(bool ranked) {
  const size_t num_clusters = ws_.sizes.size();
  ws_.probabilities.resize(num_clusters);
  ws_.zones.resize(num_clusters);
  ws_.retrieved.resize(num_clusters);
  ws_.select_tasks.clear();
  const bool sketch = options_.zones == Zones::kSketch;
  for (ZoneUnit& unit : ws_.units) {
    SelectClustersTask select;
    select.scores = ws_.rank_scores.data() + unit.first_cluster * group_;
    select.stride = unit.num_clusters;
    select.num_queries = group_;
    select.sizes = ws_.sizes.data() + unit.first_cluster;
    select.num_clusters = unit.num_clusters;
    select.token_budget = options_.retrieval.Resolve(unit.sealed_tokens);
    if (sketch) {
      select.first_zone = Zone::kSketch;
      select.token_budget =
          std::max(select.token_budget, options_.sketch.Resolve(unit.sealed_tokens));
    } else {
      // A budget of tokens is worth as many clusters as hold that share of them on average.
      const double share =
          unit.sealed_tokens == 0
              ? 0.0
              : static_cast<double>(options_.estimation.Resolve(unit.sealed_tokens)) /
                    static_cast<double>(unit.sealed_tokens);
      select.num_estimation = static_cast<int64_t>(std::ceil(share * unit.num_clusters));
    }
    select.ranked = ranked;
    if (options_.zones == Zones::kPaper) select.last_zone = Zone::kIgnored;
    select.probabilities = ws_.probabilities.data() + unit.first_cluster;
    select.zones = ws_.zones.data() + unit.first_cluster;
    select.retrieved = ws_.retrieved.data() + unit.first_cluster;
    select.num_retrieved = &unit.num_retrieved;
    ws_.select_tasks.push_back(select);
  }
  return backend_.SelectClusters(ws_.select_tasks);
}

void AttendStep::AddSketch(ZoneUnit& unit) {
  unit.first_sketch_token = static_cast<int64_t>(ws_.chosen.size());
  int64_t cluster = unit.first_cluster;
  for (int64_t i = 0; i < unit.num_indexes; ++i) {
    const ClusterIndex& index = *ws_.indexes[unit.first_index + i];
    SketchPart part;
    part.first_cluster = static_cast<int64_t>(ws_.sketch_clusters.size());
    part.first_token = unit.num_sketch_tokens;
    for (int64_t c = 0; c < index.num_clusters; ++c, ++cluster) {
      if (ws_.zones[cluster] != Zone::kSketch) continue;
      ws_.sketch_clusters.push_back(static_cast<uint32_t>(c));
      unit.num_sketch_tokens += ws_.sizes[cluster];
    }
    part.num_clusters = static_cast<int64_t>(ws_.sketch_clusters.size()) - part.first_cluster;
    ws_.sketch_parts.push_back(part);
  }
  ws_.chosen.resize(unit.first_sketch_token + unit.num_sketch_tokens);
}

absl::Status AttendStep::RankTokens() {
  for (ZoneUnit& unit : ws_.units) AddSketch(unit);
  const size_t num_tokens = ws_.chosen.size();
  ws_.token_logits.resize(num_tokens * group_);
  ws_.token_scores.resize(num_tokens * group_);
  ws_.token_probabilities.resize(num_tokens);
  ws_.score_tokens_tasks.clear();
  ws_.select_tokens_tasks.clear();
  for (size_t u = 0; u < ws_.units.size(); ++u) {
    ZoneUnit& unit = ws_.units[u];
    int64_t cluster = 0;
    for (int64_t i = 0; i < unit.num_indexes; ++i) {
      const SketchPart& part = ws_.sketch_parts[unit.first_index + i];
      const int64_t at = unit.first_sketch_token * group_ + part.first_token;
      ScoreTokensTask score;
      score.queries = ws_.rotated_queries.data() + u * group_ * model_.head_dim_k;
      score.num_queries = group_;
      score.index = ws_.indexes[unit.first_index + i];
      score.log_masses = ws_.log_masses.data() + unit.first_cluster * group_ + cluster;
      score.log_masses_stride = unit.num_clusters;
      score.mass = mass();
      score.clusters = ws_.sketch_clusters.data() + part.first_cluster;
      score.num_clusters = part.num_clusters;
      score.logits = ws_.token_logits.data() + at;
      score.rank_scores = ws_.token_scores.data() + at;
      score.stride = unit.num_sketch_tokens;
      ws_.score_tokens_tasks.push_back(score);
      cluster += score.index->num_clusters;
    }
    SelectTokensTask select;
    select.rank_scores = ws_.token_scores.data() + unit.first_sketch_token * group_;
    select.stride = unit.num_sketch_tokens;
    select.num_queries = group_;
    select.num_tokens = unit.num_sketch_tokens;
    select.log_masses = ws_.log_masses.data() + unit.first_cluster * group_;
    select.log_masses_stride = unit.num_clusters;
    select.zones = ws_.zones.data() + unit.first_cluster;
    select.num_clusters = unit.num_clusters;
    select.token_budget = options_.retrieval.Resolve(unit.sealed_tokens);
    select.probabilities = ws_.token_probabilities.data() + unit.first_sketch_token;
    select.chosen = ws_.chosen.data() + unit.first_sketch_token;
    select.num_chosen = &unit.num_chosen;
    ws_.select_tokens_tasks.push_back(select);
  }
  WAVEKV_RETURN_IF_ERROR(backend_.ScoreTokens(ws_.score_tokens_tasks));
  WAVEKV_RETURN_IF_ERROR(backend_.SelectTokens(ws_.select_tokens_tasks));
  for (ZoneUnit& unit : ws_.units) ReadMostlyChosenWhole(unit);
  return absl::OkStatus();
}

// A cluster of which more than half was chosen is one run of bytes, and its few others would be
// answered by what is left of a rounded mean.
void AttendStep::ReadMostlyChosenWhole(ZoneUnit& unit) {
  uint8_t* chosen = ws_.chosen.data() + unit.first_sketch_token;
  for (int64_t i = 0; i < unit.num_indexes; ++i) {
    const ClusterIndex& index = *ws_.indexes[unit.first_index + i];
    const SketchPart& part = ws_.sketch_parts[unit.first_index + i];
    for (int64_t c = 0; c < part.num_clusters; ++c) {
      const int64_t size = index.cluster_size(ws_.sketch_clusters[part.first_cluster + c]);
      const auto num_chosen = std::count(chosen, chosen + size, uint8_t{1});
      if (2 * num_chosen > size) {
        std::fill_n(chosen, size, uint8_t{1});
        unit.num_chosen += size - num_chosen;
      }
      chosen += size;
    }
  }
}

absl::Status AttendStep::FlushUnits(AttendStats* stats) {
  if (ws_.units.empty()) return absl::OkStatus();
  WAVEKV_RETURN_IF_ERROR(RankUnits(/*ranked=*/false));

  int64_t num_parts = 0;
  for (ZoneUnit& unit : ws_.units) {
    AddUnitRanges(unit);
    unit.first_part = num_parts;
    num_parts += static_cast<int64_t>(unit.num_pieces) + unit.num_indexes;
  }
  ws_.partial_lses.resize(num_parts * group_);
  ws_.partial_outputs.resize(num_parts * group_ * model_.head_dim_v);
  ws_.num_value_means.resize(ws_.indexes.size());
  ws_.num_super_value_means.resize(ws_.indexes.size());
  ws_.missing_lses.resize(num_parts * group_);
  ws_.value_variance.resize(num_parts * group_);
  ws_.estimated_lses.resize(ws_.units.size() * group_);
  ws_.estimated_outputs.resize(ws_.units.size() * group_ * model_.head_dim_v);

  WAVEKV_RETURN_IF_ERROR(AttendUnits());
  WAVEKV_RETURN_IF_ERROR(EstimateUnits());
  WAVEKV_RETURN_IF_ERROR(MergeUnits());
  for (const ZoneUnit& unit : ws_.units) AccountUnit(unit, stats);
  ClearUnits();
  return absl::OkStatus();
}

void AttendStep::AddUnitRanges(ZoneUnit& unit) {
  unit.first_piece = ws_.pieces.size();
  const size_t first_range = ws_.ranges.size();
  // Read in the order of memory, not of rank: neighbours share pages, and the reduction order is
  // fixed.
  if (options_.zones == Zones::kSketch) {
    AddChosenRanges(unit);
  } else {
    int64_t cluster = unit.first_cluster;
    for (int64_t i = 0; i < unit.num_indexes; ++i) {
      const ClusterIndex& index = *ws_.indexes[unit.first_index + i];
      for (int64_t c = 0; c < index.num_clusters; ++c, ++cluster) {
        if (ws_.zones[cluster] == Zone::kRetrieval) ws_.ranges.push_back(index.cluster_range(c));
      }
    }
  }
  AppendRanges(*unit.view, unit.kv_head, unit.visible_end, /*leave_out_zones=*/true, ws_.ranges);
  SplitRanges(ws_.ranges, first_range, ws_.pieces);
  unit.num_pieces = ws_.pieces.size() - unit.first_piece;
}

void AttendStep::AddChosenRanges(const ZoneUnit& unit) {
  const uint8_t* chosen = ws_.chosen.data() + unit.first_sketch_token;
  for (int64_t i = 0; i < unit.num_indexes; ++i) {
    const ClusterIndex& index = *ws_.indexes[unit.first_index + i];
    const SketchPart& part = ws_.sketch_parts[unit.first_index + i];
    for (int64_t c = 0; c < part.num_clusters; ++c) {
      const KvRange cluster = index.cluster_range(ws_.sketch_clusters[part.first_cluster + c]);
      // Runs of chosen tokens, which lie side by side.
      for (int64_t begin = 0; begin < cluster.num_tokens;) {
        int64_t end = begin;
        while (end < cluster.num_tokens && chosen[end] != 0) ++end;
        if (end > begin) {
          ws_.ranges.push_back({cluster.keys + begin * index.key_row_bytes(),
                                cluster.values + begin * index.value_row_bytes(), end - begin,
                                cluster.position_begin, cluster.positions + begin});
        }
        begin = end + 1;
      }
      chosen += cluster.num_tokens;
    }
  }
}

absl::Status AttendStep::AttendUnits() {
  const PhaseSpan span = Span(Phase::kRead);
  ws_.visible_ends.clear();
  for (const ZoneUnit& unit : ws_.units) {
    ws_.visible_ends.insert(ws_.visible_ends.end(), group_, unit.visible_end);
  }
  ws_.attend_tasks.clear();
  for (size_t u = 0; u < ws_.units.size(); ++u) {
    const ZoneUnit& unit = ws_.units[u];
    for (size_t i = 0; i < unit.num_pieces; ++i) {
      const RangePiece& piece = ws_.pieces[unit.first_piece + i];
      const int64_t part = (unit.first_part + static_cast<int64_t>(i)) * group_;
      AttendRowsTask task;
      task.queries = ws_.queries.data() + unit.first_state * model_.head_dim_k;
      task.num_queries = group_;
      // Only a row before the newest can meet a range that it does not see to the end.
      if (unit.visible_end < unit.view->contents.length) {
        task.visible_end = ws_.visible_ends.data() + u * group_;
      }
      task.shape = {model_.head_dim_k, model_.head_dim_v, model_.kv_dtype};
      task.ranges = absl::MakeConstSpan(ws_.ranges).subspan(piece.first, piece.count);
      task.output = ws_.partial_outputs.data() + part * model_.head_dim_v;
      task.lse = ws_.partial_lses.data() + part;
      ws_.attend_tasks.push_back(task);
    }
  }
  return backend_.AttendRows(ws_.attend_tasks);
}

absl::Status AttendStep::EstimateUnits() {
  const PhaseSpan span = Span(Phase::kEstimate);
  ws_.estimate_tasks.clear();
  for (const ZoneUnit& unit : ws_.units) {
    int64_t cluster = unit.first_cluster;
    for (int64_t i = 0; i < unit.num_indexes; ++i) {
      const int64_t part = (unit.first_part + static_cast<int64_t>(unit.num_pieces) + i) * group_;
      EstimateClustersTask task;
      task.queries = ws_.queries.data() + unit.first_state * model_.head_dim_k;
      task.num_queries = group_;
      task.index = ws_.indexes[unit.first_index + i];
      task.log_masses =
          ws_.log_masses.data() + unit.first_cluster * group_ + (cluster - unit.first_cluster);
      task.log_masses_stride = unit.num_clusters;
      task.mass = mass();
      task.zones = ws_.zones.data() + cluster;
      if (options_.zones == Zones::kSketch) {
        const int64_t token = ws_.sketch_parts[unit.first_index + i].first_token;
        task.token_logits = ws_.token_logits.data() + unit.first_sketch_token * group_ + token;
        task.token_rank_scores = ws_.token_scores.data() + unit.first_sketch_token * group_ + token;
        task.token_stride = unit.num_sketch_tokens;
        task.chosen = ws_.chosen.data() + unit.first_sketch_token + token;
      }
      task.num_value_means = &ws_.num_value_means[unit.first_index + i];
      task.num_super_value_means = &ws_.num_super_value_means[unit.first_index + i];
      task.output = ws_.partial_outputs.data() + part * model_.head_dim_v;
      task.lse = ws_.partial_lses.data() + part;
      task.missing_lse = ws_.missing_lses.data() + part;
      task.value_variance = ws_.value_variance.data() + part;
      ws_.estimate_tasks.push_back(task);
      cluster += task.index->num_clusters;
    }
  }
  return backend_.EstimateClusters(ws_.estimate_tasks);
}

absl::Status AttendStep::MergeUnits() {
  const PhaseSpan span = Span(Phase::kMerge);
  ws_.states.resize(ws_.partial_lses.size() / group_);
  for (size_t part = 0; part < ws_.states.size(); ++part) {
    ws_.states[part] = {ws_.partial_outputs.data() + part * group_ * model_.head_dim_v,
                        ws_.partial_lses.data() + part * group_};
  }
  ws_.merge_tasks.clear();
  const auto states = absl::MakeConstSpan(ws_.states);
  for (size_t u = 0; u < ws_.units.size(); ++u) {
    const ZoneUnit& unit = ws_.units[u];
    const auto all = states.subspan(unit.first_part, unit.num_pieces + unit.num_indexes);
    ws_.merge_tasks.push_back({all, group_, model_.head_dim_v,
                               ws_.outputs.data() + unit.first_state * model_.head_dim_v,
                               ws_.lses.data() + unit.first_state});
    // The estimated part on its own, for the error estimate.
    ws_.merge_tasks.push_back({all.subspan(unit.num_pieces), group_, model_.head_dim_v,
                               ws_.estimated_outputs.data() + u * group_ * model_.head_dim_v,
                               ws_.estimated_lses.data() + u * group_});
  }
  return backend_.MergeStates(ws_.merge_tasks);
}

void AttendStep::AccountUnit(const ZoneUnit& unit, AttendStats* stats) {
  const bool sketch = options_.zones == Zones::kSketch;
  int64_t retrieved_tokens = unit.num_chosen;
  if (!sketch) {
    for (int64_t i = 0; i < unit.num_retrieved; ++i) {
      retrieved_tokens += ws_.sizes[unit.first_cluster + ws_.retrieved[unit.first_cluster + i]];
    }
  }
  const int64_t exact_tokens = unit.visible_end - unit.sealed_tokens + retrieved_tokens;
  stats->tokens_visible += unit.visible_end;
  stats->tokens_exact += exact_tokens;
  stats->tokens_retrieved += retrieved_tokens;
  stats->tokens_sketched += unit.num_sketch_tokens;
  stats->tokens_estimated += unit.sealed_tokens - retrieved_tokens;
  stats->clusters_scored += unit.num_clusters;
  stats->clusters_retrieved += sketch ? 0 : unit.num_retrieved;
  stats->bytes_dense += unit.visible_end * kv_bytes_;
  stats->bytes_read += exact_tokens * kv_bytes_ + IndexBytesRead(unit);

  const int64_t u = &unit - ws_.units.data();
  for (int query = 0; query < group_; ++query) {
    const double mass = std::exp(static_cast<double>(ws_.estimated_lses[u * group_ + query]) -
                                 ws_.lses[unit.first_state + query]);
    const double error = PredictError(unit, query);
    ws_.errors[unit.first_state + query] = static_cast<float>(error);
    stats->estimated_mass_mean += mass;
    stats->estimated_mass_max = std::max(stats->estimated_mass_max, mass);
    stats->error_estimate_mean += error;
    stats->error_estimate_max = std::max(stats->error_estimate_max, error);
  }
}

// Of every super-cluster: its centroid and where its clusters begin. Of every cluster: centroid,
// size, offset and key spread, to rank it, and its value spread. Of a segment: its mean key and
// value. Of the sketch zone: codes and their factors. And the value means that answered.
int64_t AttendStep::IndexBytesRead(const ZoneUnit& unit) const {
  int64_t bytes = unit.num_indexes * (model_.head_dim_k + model_.head_dim_v) * sizeof(float);
  for (int64_t i = unit.first_index; i < unit.first_index + unit.num_indexes; ++i) {
    const ClusterIndex& index = *ws_.indexes[i];
    const int64_t scale_bytes = index.centroids.scales == nullptr ? 0 : sizeof(float);
    bytes += index.num_clusters * (index.centroids.row_bytes + scale_bytes + 4 * sizeof(float)) +
             index.num_supers * (index.super_centroids.row_bytes + scale_bytes + sizeof(float)) +
             ws_.num_value_means[i] * (index.value_means.row_bytes + scale_bytes) +
             ws_.num_super_value_means[i] * (index.super_value_means.row_bytes + scale_bytes);
  }
  const ClusterIndex& first = *ws_.indexes[unit.first_index];
  const int64_t token_bytes = first.code_words() * sizeof(uint64_t) + sizeof(uint16_t);
  return bytes + unit.num_sketch_tokens * token_bytes;
}

double AttendStep::PredictError(const ZoneUnit& unit, int query) const {
  const int64_t u = &unit - ws_.units.data();
  const double lse = ws_.lses[unit.first_state + query];
  double missing = 0.0;
  double variance = 0.0;
  for (int64_t i = 0; i < unit.num_indexes; ++i) {
    const int64_t state =
        (unit.first_part + static_cast<int64_t>(unit.num_pieces) + i) * group_ + query;
    const double share = std::exp(ws_.partial_lses[state] - lse);
    missing += std::exp(ws_.missing_lses[state] - lse);
    variance += share * share * ws_.value_variance[state];
  }
  // Missing mass would pull the output by missing / (1 + missing) of the way to its values, which
  // lie further out than the estimated ones.
  constexpr double kFurther = 1.7;
  const double pull = kFurther * (1.0 - 1.0 / (1.0 + missing));
  const float* output = ws_.outputs.data() + (unit.first_state + query) * model_.head_dim_v;
  const float* estimated = ws_.estimated_outputs.data() + (u * group_ + query) * model_.head_dim_v;
  double distance2 = 0.0;
  double norm2 = 0.0;
  for (int d = 0; d < model_.head_dim_v; ++d) {
    const double difference = static_cast<double>(estimated[d]) - output[d];
    distance2 += difference * difference;
    norm2 += static_cast<double>(output[d]) * output[d];
  }
  if (norm2 == 0.0) return 0.0;
  constexpr double kRounding = 1e-7;  // of sums in fp32, which exact attention has as well
  return std::sqrt((pull * pull * distance2 + variance) / norm2 + kRounding * kRounding);
}

void AttendStep::ClearUnits() {
  ws_.units.clear();
  ws_.indexes.clear();
  ws_.sizes.clear();
  ws_.sketch_parts.clear();
  ws_.sketch_clusters.clear();
  ws_.chosen.clear();
  ws_.ranges.clear();
  ws_.pieces.clear();
  ws_.visible_ends.clear();
  ws_.partial_lses.clear();
}

}  // namespace wavekv
