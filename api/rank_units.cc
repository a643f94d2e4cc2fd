// The part of AttendStep that decides what rows answered by zones read: score, select.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "api/attend_step.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

// Shares of target_error squared that may be left to clusters and to tokens that are not read; what
// remains is for mass that may be missing. Chosen so that steps whose budgets do not end them first
// have the error estimate asked for (docs/wave_index.md).
constexpr double kClusterRisk = 0.4;
constexpr double kTokenRisk = 0.4;

// Hidden tokens are rare and heavy: looking into the few clusters that may hold one costs little,
// and takes off more of the largest errors than their mean would ask for.
constexpr float kHiddenCaution = 20.0f;

// Far from where products of fp32 end.
constexpr float kVarianceMax = 1e36f;

// Selects among `count` of the level, those of one unit.
SelectClustersTask SelectOf(RankedLevel& level, int64_t first, int64_t count, int num_queries,
                            int64_t* num_retrieved) {
  SelectClustersTask select;
  select.scores = level.rank_scores.data() + first * num_queries;
  select.stride = count;
  select.num_queries = num_queries;
  select.sizes = level.sizes.data() + first;
  select.num_clusters = count;
  select.probabilities = level.probabilities.data() + first;
  select.zones = level.zones.data() + first;
  select.retrieved = level.retrieved.data() + first;
  select.num_retrieved = num_retrieved;
  return select;
}

}  // namespace

absl::StatusOr<std::vector<RetrievedTokens>> AttendStep::Retrieve() {
  std::vector<RetrievedTokens> all;
  for (const SequenceView& view : batch_.views) {
    for (int64_t row = 0; row < view.num_rows; ++row) {
      for (int head = 0; head < model_.num_kv_heads; ++head) AddUnit({&view, row, head});
    }
  }
  wave_ = absl::MakeSpan(ws_.units);
  WAVEKV_RETURN_IF_ERROR(RankUnits(/*ranked=*/true));
  for (ZoneUnit& unit : ws_.units) all.push_back(RetrievedBy(unit));
  ClearUnits();
  return all;
}

RetrievedTokens AttendStep::RetrievedBy(ZoneUnit& unit) {
  // Where the tokens of a cluster stand in `chosen`, by number of the cluster in the unit.
  std::vector<int64_t> first_tokens;
  if (options_.zones == Zones::kSketch) {
    int64_t token = unit.first_sketch_token;
    ChosenClusters chosen;
    for (int64_t i = unit.first_index; i < unit.first_index + unit.num_indexes; ++i) {
      const SketchPart& part = ws_.sketch_parts[i];
      ListChosen(unit, part, *ws_.indexes[i], chosen);
    }
    for (int64_t i = 0; i < unit.num_clusters; ++i) {
      first_tokens.push_back(token);
      if (ws_.clusters.zones[unit.first_cluster + i] == Zone::kSketch) {
        token += ws_.clusters.sizes[unit.first_cluster + i];
      }
    }
  }
  RetrievedTokens tokens;
  for (int64_t i = 0; i < unit.num_retrieved; ++i) {
    const uint32_t id = ws_.clusters.retrieved[unit.first_cluster + i];
    int64_t cluster = id;
    int64_t at = unit.first_index;
    while (cluster >= ws_.indexes[at]->num_clusters) cluster -= ws_.indexes[at++]->num_clusters;
    const ClusterIndex& index = *ws_.indexes[at];
    tokens.clusters.push_back({index.position_begin, cluster, index.cluster_size(cluster),
                               ws_.clusters.probabilities[unit.first_cluster + id]});
    const uint16_t* positions = index.positions + index.offsets[cluster];
    for (int64_t token = 0; token < index.cluster_size(cluster); ++token) {
      if (!first_tokens.empty() && ws_.chosen[first_tokens[id] + token] == 0) continue;
      tokens.positions.push_back(index.position_begin + positions[token]);
      tokens.places.push_back(token);
      ++tokens.clusters.back().num_read;
    }
  }
  return tokens;
}

absl::Status AttendStep::RankUnits(bool ranked) {
  for (ZoneUnit& unit : wave_) unit.first_estimate = AddParts(unit.num_indexes);
  if (HasTarget()) {
    {
      const PhaseSpan span = Span(Phase::kRank);
      WAVEKV_RETURN_IF_ERROR(ScoreUnits());
    }
    WAVEKV_RETURN_IF_ERROR(MeasureUnits());
  }
  const PhaseSpan span = Span(Phase::kRank);
  if (!HasTarget()) WAVEKV_RETURN_IF_ERROR(ScoreUnits());
  WAVEKV_RETURN_IF_ERROR(SelectUnits(ranked));
  if (options_.zones != Zones::kSketch) return absl::OkStatus();
  return RankTokens();
}

// Opens the super-clusters that hold the best `open` of the tokens, and at least as many as
// clusters of their own are chosen from.
absl::Status AttendStep::OpenSupers() {
  RankedLevel& supers = ws_.supers;
  supers.Resize(group_);
  ws_.score_supers_tasks.clear();
  ws_.select_tasks.clear();
  for (ZoneUnit& unit : wave_) {
    const size_t u = NumberOf(unit);
    int64_t super = unit.first_super * group_;
    for (int64_t i = 0; i < unit.num_indexes; ++i) {
      ScoreSupersTask score;
      score.queries = ws_.rotated_queries.data() + u * group_ * model_.head_dim_k;
      score.num_queries = group_;
      score.index = ws_.indexes[unit.first_index + i];
      score.mass = mass();
      score.ranking = ranking();
      score.log_masses = supers.log_masses.data() + super;
      score.rank_scores = supers.rank_scores.data() + super;
      score.stride = unit.num_supers;
      ws_.score_supers_tasks.push_back(score);
      super += score.index->num_supers;
    }
    // The count is overwritten when clusters are selected.
    SelectClustersTask select =
        SelectOf(supers, unit.first_super, unit.num_supers, group_, &unit.num_retrieved);
    select.token_budget = std::max(options_.open.Resolve(unit.sealed_tokens), AnsweredTokens(unit));
    select.first_zone = Zone::kSketch;
    select.ranked = false;
    ws_.select_tasks.push_back(select);
  }
  WAVEKV_RETURN_IF_ERROR(backend().ScoreSupers(ws_.score_supers_tasks));
  return backend().SelectClusters(ws_.select_tasks);
}

absl::Status AttendStep::ScoreUnits() {
  // Once all units are known.
  ws_.clusters.Resize(group_);
  ws_.rotated_queries.resize(ws_.units.size() * group_ * model_.head_dim_k);
  ws_.rotate_tasks.clear();
  for (const ZoneUnit& unit : wave_) {
    ws_.rotate_tasks.push_back(
        {batch_.queries.data() + unit.first_state * model_.head_dim_k,
         ws_.rotated_queries.data() + NumberOf(unit) * group_ * model_.head_dim_k, group_,
         model_.head_dim_k});
  }
  WAVEKV_RETURN_IF_ERROR(backend().RotateRows(ws_.rotate_tasks));
  if (!OpensAll()) WAVEKV_RETURN_IF_ERROR(OpenSupers());

  ws_.score_tasks.clear();
  for (const ZoneUnit& unit : wave_) {
    const size_t u = NumberOf(unit);
    int64_t cluster = unit.first_cluster * group_;
    int64_t super = 0;
    for (int64_t i = 0; i < unit.num_indexes; ++i) {
      ScoreClustersTask score;
      score.queries = ws_.rotated_queries.data() + u * group_ * model_.head_dim_k;
      score.num_queries = group_;
      score.index = ws_.indexes[unit.first_index + i];
      score.log_masses = ws_.clusters.log_masses.data() + cluster;
      score.stride = unit.num_clusters;
      score.mass = mass();
      score.ranking = ranking();
      score.rank_scores = ws_.clusters.rank_scores.data() + cluster;
      if (!OpensAll()) {
        score.super_zones = ws_.supers.zones.data() + unit.first_super + super;
        score.super_log_masses = ws_.supers.log_masses.data() + unit.first_super * group_ + super;
        score.super_stride = unit.num_supers;
      }
      ws_.score_tasks.push_back(score);
      cluster += score.index->num_clusters;
      super += score.index->num_supers;
    }
  }
  return backend().ScoreClusters(ws_.score_tasks);
}

// A first look at the outputs, for target_error: the steady zone exactly, all else by means of
// super-clusters. Errors are relative to its length, which is the best that is known before rows
// are read.
absl::Status AttendStep::MeasureUnits() {
  ws_.clusters.zones.assign(ws_.clusters.sizes.size(), Zone::kRemainder);
  AddGroups(&ZoneUnit::steady,
            [&](ZoneUnit& unit, RowGroup& rows) { AddSteadyRanges(unit, rows); });
  WAVEKV_RETURN_IF_ERROR(AttendPieces(&ZoneUnit::steady));
  WAVEKV_RETURN_IF_ERROR(EstimateUnits(/*coarse=*/true));

  ws_.coarse_lses.resize(ws_.units.size() * group_);
  ws_.coarse_outputs.resize(ws_.units.size() * group_ * model_.head_dim_v);
  ws_.merge_states.clear();
  for (const ZoneUnit& unit : ws_.units) {
    AddStates(unit.steady);
    AddStates(unit.first_estimate, unit.num_indexes);
  }
  ws_.merge_tasks.clear();
  auto states = absl::MakeConstSpan(ws_.merge_states);
  for (size_t u = 0; u < ws_.units.size(); ++u) {
    const auto all = states.first(ws_.units[u].steady.num_pieces + ws_.units[u].num_indexes);
    states.remove_prefix(all.size());
    ws_.merge_tasks.push_back({all, group_, model_.head_dim_v,
                               ws_.coarse_outputs.data() + u * group_ * model_.head_dim_v,
                               ws_.coarse_lses.data() + u * group_});
  }
  WAVEKV_RETURN_IF_ERROR(backend().MergeStates(ws_.merge_tasks));

  const auto squared_length = [](const float* row, int dim) {
    double squared = 0.0;
    for (int d = 0; d < dim; ++d) squared += double{row[d]} * row[d];
    return squared;
  };
  constexpr double kMost = std::numeric_limits<float>::max();
  ws_.inverse_squares.resize(ws_.coarse_lses.size());
  ws_.logit_spreads.resize(ws_.coarse_lses.size());
  for (size_t state = 0; state < ws_.coarse_lses.size(); ++state) {
    const float* output = ws_.coarse_outputs.data() + state * model_.head_dim_v;
    const double squared = squared_length(output, model_.head_dim_v);
    ws_.inverse_squares[state] = static_cast<float>(std::min(1.0 / squared, kMost));
    const float* query = ws_.rotated_queries.data() + state * model_.head_dim_k;
    const double spread = squared_length(query, model_.head_dim_k) / model_.head_dim_k;
    ws_.logit_spreads[state] = static_cast<float>(std::min(spread, kMost));
  }

  ws_.cluster_variances.clear();
  ws_.hidden_variances.clear();
  ws_.key_spreads.clear();
  for (const ClusterIndex* index : ws_.indexes) {
    ws_.key_spreads.insert(ws_.key_spreads.end(), index->key_spreads,
                           index->key_spreads + index->num_clusters);
    for (int64_t s = 0; s < index->num_supers; ++s) {
      for (int64_t c = index->super_offsets[s]; c < index->super_offsets[s + 1]; ++c) {
        ws_.cluster_variances.push_back(std::min(ClusterVariance(*index, s), kVarianceMax));
        ws_.hidden_variances.push_back(
            std::min(HiddenVariance(*index, s, c, kHiddenCaution), kVarianceMax));
      }
    }
  }
  return absl::OkStatus();
}

int64_t AttendStep::AnsweredTokens(const ZoneUnit& unit) const {
  const int64_t selected = SelectedTokens(unit);
  if (options_.zones == Zones::kSketch) return selected;
  // Clusters differ in size: so many of them may hold more than the budget says.
  return std::min(unit.sealed_tokens,
                  selected + 2 * options_.estimation.Resolve(unit.sealed_tokens));
}

int64_t AttendStep::SelectedTokens(const ZoneUnit& unit) const {
  const int64_t retrieval = options_.retrieval.Resolve(unit.sealed_tokens);
  if (options_.zones != Zones::kSketch) return retrieval;
  return std::max(retrieval, options_.sketch.Resolve(unit.sealed_tokens));
}

absl::Status AttendStep::SelectUnits(bool ranked) {
  RankedLevel& clusters = ws_.clusters;
  ws_.risk_limits.resize(ws_.units.size());
  ws_.log_totals.resize(ws_.units.size() * group_);
  ws_.select_tasks.clear();
  for (ZoneUnit& unit : wave_) {
    const size_t u = NumberOf(unit);
    SelectClustersTask select =
        SelectOf(clusters, unit.first_cluster, unit.num_clusters, group_, &unit.num_retrieved);
    select.token_budget = SelectedTokens(unit);
    if (options_.zones == Zones::kSketch) {
      select.first_zone = Zone::kSketch;
      select.log_totals = ws_.log_totals.data() + u * group_;
    } else {
      // A budget of tokens is worth as many clusters as hold that share of them on average.
      const double share =
          unit.sealed_tokens == 0
              ? 0.0
              : static_cast<double>(options_.estimation.Resolve(unit.sealed_tokens)) /
                    static_cast<double>(unit.sealed_tokens);
      select.num_estimation = static_cast<int64_t>(std::ceil(share * unit.num_clusters));
    }
    if (HasTarget()) {
      RiskLimit& risk = ws_.risk_limits[u];
      risk.log_masses = clusters.log_masses.data() + unit.first_cluster * group_;
      risk.stride = unit.num_clusters;
      risk.lses = ws_.coarse_lses.data() + u * group_;
      risk.inverse_squares = ws_.inverse_squares.data() + u * group_;
      risk.variances = ws_.cluster_variances.data() + unit.first_cluster;
      risk.hidden_variances = ws_.hidden_variances.data() + unit.first_cluster;
      risk.key_spreads = ws_.key_spreads.data() + unit.first_cluster;
      risk.logit_spreads = ws_.logit_spreads.data() + u * group_;
      risk.limit = kClusterRisk * options_.target_error * options_.target_error;
      select.risk = &ws_.risk_limits[u];
    }
    select.ranked = ranked;
    if (options_.zones == Zones::kPaper) select.last_zone = Zone::kIgnored;
    ws_.select_tasks.push_back(select);
  }
  return backend().SelectClusters(ws_.select_tasks);
}

void AttendStep::AddSketch(ZoneUnit& unit) {
  unit.first_sketch_token = static_cast<int64_t>(ws_.chosen.size());
  int64_t cluster = unit.first_cluster;
  for (int64_t i = 0; i < unit.num_indexes; ++i) {
    const ClusterIndex& index = *ws_.indexes[unit.first_index + i];
    SketchPart part;
    part.first_cluster = static_cast<int64_t>(ws_.sketch_clusters.size());
    part.first_token = unit.num_sketch_tokens;
    const Zone* const zones = ws_.clusters.zones.data() + cluster;
    // Few are, and to look for the next takes less than to look at each.
    for (const void* at = zones;;) {
      const auto* from = static_cast<const Zone*>(at);
      at = std::memchr(from, static_cast<int>(Zone::kSketch), zones + index.num_clusters - from);
      if (at == nullptr) break;
      const int64_t c = static_cast<const Zone*>(at) - zones;
      ws_.sketch_clusters.push_back(static_cast<uint32_t>(c));
      unit.num_sketch_tokens += ws_.clusters.sizes[cluster + c];
      at = zones + c + 1;
    }
    part.num_clusters = static_cast<int64_t>(ws_.sketch_clusters.size()) - part.first_cluster;
    part.num_tokens = unit.num_sketch_tokens - part.first_token;
    ws_.sketch_parts.push_back(part);
    cluster += index.num_clusters;
  }
  ws_.chosen.resize(unit.first_sketch_token + unit.num_sketch_tokens);
}

absl::Status AttendStep::RankTokens() {
  for (ZoneUnit& unit : wave_) AddSketch(unit);
  const size_t num_tokens = ws_.chosen.size();
  ws_.token_masses.resize(num_tokens * group_);
  ws_.token_offsets.resize(ws_.indexes.size() * group_);
  ws_.token_shares.resize(num_tokens);
  if (HasTarget()) {
    ws_.token_risks.resize(num_tokens);
    ws_.token_risk.resize(ws_.units.size());
  }
  ws_.score_tokens_tasks.clear();
  ws_.choose_tokens_tasks.clear();
  for (ZoneUnit& unit : wave_) {
    const size_t u = NumberOf(unit);
    if (HasTarget()) {
      ws_.token_risk[u] = {ws_.coarse_lses.data() + u * group_,
                           ws_.inverse_squares.data() + u * group_};
    }
    int64_t cluster = 0;
    for (int64_t i = 0; i < unit.num_indexes; ++i) {
      const SketchPart& part = ws_.sketch_parts[unit.first_index + i];
      const int64_t first_token = unit.first_sketch_token + part.first_token;
      ScoreTokensTask score;
      score.queries = ws_.rotated_queries.data() + u * group_ * model_.head_dim_k;
      score.num_queries = group_;
      score.index = ws_.indexes[unit.first_index + i];
      score.log_masses = ws_.clusters.log_masses.data() + unit.first_cluster * group_ + cluster;
      score.log_masses_stride = unit.num_clusters;
      score.mass = mass();
      score.clusters = ws_.sketch_clusters.data() + part.first_cluster;
      score.num_clusters = part.num_clusters;
      score.masses = ws_.token_masses.data() + unit.first_sketch_token * group_ + part.first_token;
      score.offsets = ws_.token_offsets.data() + (unit.first_index + i) * group_;
      score.stride = unit.num_sketch_tokens;
      score.log_totals = ws_.log_totals.data() + u * group_;
      score.shares = ws_.token_shares.data() + first_token;
      if (HasTarget()) {
        score.risk = &ws_.token_risk[u];
        score.risks = ws_.token_risks.data() + first_token;
      }
      ws_.score_tokens_tasks.push_back(score);
      cluster += score.index->num_clusters;
    }
    ChooseTokensTask choose;
    choose.shares = ws_.token_shares.data() + unit.first_sketch_token;
    choose.num_tokens = unit.num_sketch_tokens;
    choose.token_budget = options_.retrieval.Resolve(unit.sealed_tokens);
    if (HasTarget()) {
      choose.risks = ws_.token_risks.data() + unit.first_sketch_token;
      choose.risk_limit = kTokenRisk * options_.target_error * options_.target_error;
    }
    choose.chosen = ws_.chosen.data() + unit.first_sketch_token;
    choose.num_chosen = &unit.num_chosen;
    ws_.choose_tokens_tasks.push_back(choose);
  }
  WAVEKV_RETURN_IF_ERROR(backend().ScoreTokens(ws_.score_tokens_tasks));
  return backend().ChooseTokens(ws_.choose_tokens_tasks);
}

}  // namespace wavekv
