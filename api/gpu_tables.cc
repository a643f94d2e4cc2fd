#include "api/gpu_tables.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace wavekv {
namespace {

StepBudget ToStepBudget(const Budget& budget) {
  return budget.is_ratio() ? StepBudget{budget.ratio(), -1} : StepBudget{0.0, budget.tokens()};
}

int64_t Resolve(const StepBudget& budget, int64_t num_tokens) {
  return (budget.tokens >= 0 ? Budget::Tokens(budget.tokens) : Budget::Ratio(budget.ratio))
      .Resolve(num_tokens);
}

// Byte offsets of the tables.
struct Offsets {
  int64_t sequences, segments, indexes, chunks, end;
};

Offsets LayOut(const TableSizes& sizes, int num_kv_heads) {
  Offsets at;
  int64_t next = 0;
  const auto place = [&next](int64_t bytes) {
    const int64_t here = next;
    next += (bytes + 15) / 16 * 16;
    return here;
  };
  at.sequences = place(sizes.sequences * static_cast<int64_t>(sizeof(StepSequence)));
  at.segments = place(sizes.segments * static_cast<int64_t>(sizeof(StepSegment)));
  at.indexes = place(sizes.segments * num_kv_heads * static_cast<int64_t>(sizeof(ClusterIndex*)));
  at.chunks = place(sizes.chunks * static_cast<int64_t>(sizeof(StepChunk)));
  at.end = next;
  return at;
}

}  // namespace

StepOptions ToStepOptions(const ModelSpec& model, const AttendOptions& options) {
  StepOptions step;
  step.zones = options.zones;
  step.retrieval = ToStepBudget(options.retrieval);
  step.sketch = ToStepBudget(options.sketch);
  step.estimation = ToStepBudget(options.estimation);
  step.open = ToStepBudget(options.open);
  step.opens_all = options.open.is_ratio() && options.open.ratio() >= 1.0;
  step.exact = options.retrieval.is_ratio() && options.retrieval.ratio() >= 1.0;
  // Then budgets are what is read at most, and everything still has to be ranked.
  step.target_error = options.target_error;
  step.exact = step.exact && options.target_error == 0.0;
  step.causal = options.causal;
  const bool paper = options.zones == Zones::kPaper;
  step.mass = paper ? MassEstimate::kLowerBound : options.mass;
  step.ranking = paper ? Ranking::kCentroid : Ranking::kOptimistic;
  step.last_zone = paper ? Zone::kIgnored : Zone::kRemainder;
  step.softmax_scale = model.scale();
  step.lse_scale = options.lse_base == LseBase::k2 ? 1.0f / std::log(2.0f) : 1.0f;
  return step;
}

// Clusters are taken whole, until there are enough tokens; and a cluster of which more than half
// was chosen is read whole.
int64_t ChosenTokens(const IndexOptions& index, const StepOptions& options, int64_t num_sealed) {
  const int64_t retrieval = Resolve(options.retrieval, num_sealed);
  return std::min(num_sealed, options.zones == Zones::kSketch
                                  ? 2 * retrieval
                                  : retrieval + index.cluster_tokens_max);
}

int64_t SketchTokens(const IndexOptions& index, const StepOptions& options, int64_t num_sealed) {
  const int64_t most =
      std::max(Resolve(options.retrieval, num_sealed), Resolve(options.sketch, num_sealed));
  return std::min(num_sealed, most + index.cluster_tokens_max);
}

int64_t TableSizes::Bytes(int num_kv_heads) const { return LayOut(*this, num_kv_heads).end; }

GpuTables::GpuTables(const ModelSpec& model, const IndexOptions& index, const StepOptions& options,
                     absl::Span<const SequenceView> views, absl::Span<const RowSpan> spans,
                     int tile_rows)
    : model_(model), index_(index), options_(options) {
  bounds_.task.shape = {model.head_dim_k, model.head_dim_v, model.kv_dtype};
  bounds_.task.statistics = index.statistics;
  bounds_.task.code_bits = ResolveCodeBits(index.code_bits, model.head_dim_k);
  bounds_.num_kv_heads = model.num_kv_heads;
  bounds_.group = model.gqa_group_size();
  bounds_.tile_rows = tile_rows;
  bounds_.task.num_queries = tile_rows * bounds_.group;
  for (const RowSpan& span : spans) AddSequence(views[span.view], span);
  bounds_.num_sequences = static_cast<int>(sequences_.size());
  sizes_ = {static_cast<int64_t>(sequences_.size()), static_cast<int64_t>(segments_.size()),
            static_cast<int64_t>(chunks_.size())};
}

void GpuTables::AddChunks(const RowChunks& chunks) {
  for (const auto& chunk : chunks) {
    chunks_.push_back({chunk->keys(0, 0), chunk->capacity(), chunk->position_begin()});
  }
}

void GpuTables::AddSequence(const SequenceView& view, const RowSpan& span) {
  StepSequence sequence;
  sequence.length = view.contents.length;
  sequence.num_rows = view.num_rows;
  sequence.batch_row = view.first_row;
  sequence.first_row = span.first_row;
  sequence.rows_here = span.num_rows;
  sequence.first_state = bounds_.num_states;
  sequence.first_unit = bounds_.num_units;
  sequence.first_segment = static_cast<int64_t>(segments_.size());
  sequence.first_chunk = static_cast<int64_t>(chunks_.size());
  const int64_t tiles = (span.num_rows + bounds_.tile_rows - 1) / bounds_.tile_rows;
  bounds_.num_units += tiles * model_.num_kv_heads;
  bounds_.num_states += span.num_rows * model_.num_q_heads;

  const int64_t first_end = view.VisibleEnd(span.first_row);
  const int64_t last_end = view.VisibleEnd(span.first_row + span.num_rows - 1);
  if (view.contents.sinks != nullptr) AddChunks({view.contents.sinks});
  for (size_t i = 0; i < view.pins.size(); ++i) {
    const Segment& segment = *view.contents.segments[i];
    if (segment.begin() >= last_end) break;
    if (view.pins[i].sealed == nullptr) {
      AddChunks(view.pins[i].chunks);
      continue;
    }
    segments_.push_back({segment.begin(), segment.end()});
    for (const SealedHead& head : view.pins[i].sealed->heads) {
      indexes_.push_back(reinterpret_cast<const ClusterIndex*>(head.extent.data()));
    }
  }
  AddChunks(view.contents.tail);
  sequence.num_segments = static_cast<int64_t>(segments_.size()) - sequence.first_segment;
  sequence.num_chunks = static_cast<int64_t>(chunks_.size()) - sequence.first_chunk;
  sequences_.push_back(sequence);

  bounds_.segments = std::max(bounds_.segments, sequence.num_segments);
  for (int h = 0; h < model_.num_kv_heads; ++h) {
    Need need;
    need.ranges = sequence.num_chunks;
    need.exact_tokens = last_end;
    for (size_t i = 0; i < view.pins.size(); ++i) {
      const Segment& segment = *view.contents.segments[i];
      if (view.pins[i].sealed == nullptr || segment.begin() >= last_end) continue;
      const ClusterIndex& index = view.pins[i].sealed->heads[h].index;
      bounds_.index_clusters = std::max(bounds_.index_clusters, index.num_clusters);
      bounds_.index_supers = std::max(bounds_.index_supers, index.num_supers);
      bounds_.index_tokens = std::max(bounds_.index_tokens, index.num_tokens);
      need.clusters += index.num_clusters;
      need.supers += index.num_supers;
      need.tokens += index.num_tokens;
      if (options_.exact || segment.end() > first_end) {
        need.ranges += index.num_clusters;
      } else {
        need.exact_tokens -= index.num_tokens;
      }
    }
    Raise(need);
  }
}

void GpuTables::Raise(const Need& need) {
  bounds_.clusters = std::max(bounds_.clusters, need.clusters);
  bounds_.supers = std::max(bounds_.supers, need.supers);
  bounds_.ranges = std::max(bounds_.ranges, need.ranges);
  const int64_t chosen = ChosenTokens(index_, options_, need.tokens);
  bounds_.chosen = std::max(bounds_.chosen, chosen);
  if (options_.zones == Zones::kSketch) {
    bounds_.sketch_tokens =
        std::max(bounds_.sketch_tokens, SketchTokens(index_, options_, need.tokens));
  }
  exact_tokens_ = std::max(exact_tokens_, need.exact_tokens + chosen);
}

void GpuTables::ForEachPart(
    const TableSizes& capacity,
    absl::FunctionRef<void(int64_t offset, const void* data, int64_t bytes)> use) const {
  const Offsets at = LayOut(capacity, model_.num_kv_heads);
  const auto part = [&](int64_t offset, const auto& table) {
    const auto bytes = static_cast<int64_t>(table.size() * sizeof(table[0]));
    if (bytes > 0) use(offset, table.data(), bytes);
  };
  part(at.sequences, sequences_);
  part(at.segments, segments_);
  part(at.indexes, indexes_);
  part(at.chunks, chunks_);
}

void GpuTables::Write(const TableSizes& capacity, std::byte* host) const {
  ForEachPart(capacity, [&](int64_t offset, const void* data, int64_t bytes) {
    std::memcpy(host + offset, data, static_cast<size_t>(bytes));
  });
}

StepTables GpuTables::Locate(const TableSizes& capacity, int num_kv_heads,
                             const std::byte* device) {
  const Offsets at = LayOut(capacity, num_kv_heads);
  return {reinterpret_cast<const StepSequence*>(device + at.sequences),
          reinterpret_cast<const StepSegment*>(device + at.segments),
          reinterpret_cast<const ClusterIndex* const*>(device + at.indexes),
          reinterpret_cast<const StepChunk*>(device + at.chunks)};
}

}  // namespace wavekv
