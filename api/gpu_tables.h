// The tables of cuda/step.h, made of what a step has pinned.
#ifndef WAVEKV_API_GPU_TABLES_H_
#define WAVEKV_API_GPU_TABLES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "api/step_view.h"
#include "cuda/step.h"
#include "wavekv/model_spec.h"
#include "wavekv/options.h"

namespace wavekv {

StepOptions ToStepOptions(const ModelSpec& model, const AttendOptions& options);

// Tokens of a sequence of which so many are sealed that are read one by one, at most, and whose
// codes are.
int64_t ChosenTokens(const IndexOptions& index, const StepOptions& options, int64_t num_sealed);
int64_t SketchTokens(const IndexOptions& index, const StepOptions& options, int64_t num_sealed);

// Some rows of one sequence of a batch.
struct RowSpan {
  size_t view = 0;
  int64_t first_row = 0;  // among the sequence's
  int64_t num_rows = 0;
};

// How many elements the tables of a layer have, or may have.
struct TableSizes {
  int64_t sequences = 0;
  int64_t segments = 0;
  int64_t chunks = 0;

  int64_t Bytes(int num_kv_heads) const;
};

class GpuTables {
 public:
  // `spans`: the rows of one launch, views in ascending order. tile_rows: rows of a unit.
  GpuTables(const ModelSpec& model, const IndexOptions& index, const StepOptions& options,
            absl::Span<const SequenceView> views, absl::Span<const RowSpan> spans, int tile_rows);

  // What buffers must hold, but for splits. Exact: follows from what is pinned.
  const StepBounds& bounds() const { return bounds_; }
  // Tokens that a unit attends exactly, at most.
  int64_t exact_tokens() const { return exact_tokens_; }
  const TableSizes& sizes() const { return sizes_; }

  // Calls use(offset, data, bytes) for each table, where it lies in memory laid out for `capacity`.
  void ForEachPart(
      const TableSizes& capacity,
      absl::FunctionRef<void(int64_t offset, const void* data, int64_t bytes)> use) const;
  void Write(const TableSizes& capacity, std::byte* host) const;
  static StepTables Locate(const TableSizes& capacity, int num_kv_heads, const std::byte* device);

 private:
  struct Need {
    int64_t clusters = 0, supers = 0, tokens = 0, ranges = 0, exact_tokens = 0;
  };
  void AddSequence(const SequenceView& view, const RowSpan& span);
  void AddChunks(const RowChunks& chunks);
  void Raise(const Need& need);

  const ModelSpec& model_;
  const IndexOptions& index_;
  const StepOptions& options_;
  StepBounds bounds_;
  TableSizes sizes_;
  int64_t exact_tokens_ = 0;
  std::vector<StepSequence> sequences_;
  std::vector<StepSegment> segments_;
  std::vector<const ClusterIndex*> indexes_;
  std::vector<StepChunk> chunks_;
};

}  // namespace wavekv

#endif  // WAVEKV_API_GPU_TABLES_H_
