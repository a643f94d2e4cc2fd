// Heads to evaluate: of a recording, or synthetic.
#ifndef WAVEKV_BENCH_HEAD_SOURCE_H_
#define WAVEKV_BENCH_HEAD_SOURCE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/synthetic_layer.h"
#include "tools/trace/trace_file.h"
#include "tools/trace/trace_head.h"

namespace wavekv::bench {

// Heads of equal length, and what holds their bytes.
struct HeadSource {
  std::string name;
  std::vector<TraceHead> heads;
  std::vector<int64_t> layers;                  // of each head
  std::optional<std::vector<int64_t>> queries;  // to ask; all, when left out

  std::optional<TraceFile> trace;
  std::vector<LayerRows> rows;
  std::vector<std::vector<float>> head_queries;
  std::vector<int32_t> positions;
};

// All heads of a file. Queries of a text that goes on, where the file tells them from others.
absl::StatusOr<std::unique_ptr<HeadSource>> RecordedSource(const std::string& path);

// Two heads of each sharpness, a layer each; queries of the last positions. Named after the
// sharpness when it is one.
absl::StatusOr<std::unique_ptr<HeadSource>> SyntheticSource(
    const std::vector<synthetic::Sharpness>& sharpness, int64_t num_tokens, int64_t num_queries);

}  // namespace wavekv::bench

#endif  // WAVEKV_BENCH_HEAD_SOURCE_H_
