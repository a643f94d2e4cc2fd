// Records the attention of a sequence: what it stored and what it was asked.
#ifndef WAVEKV_EXAMPLES_TINYLM_TRACE_RECORDER_H_
#define WAVEKV_EXAMPLES_TINYLM_TRACE_RECORDER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "examples/tinylm/attention.h"
#include "examples/tinylm/model_config.h"

namespace tinylm {

// Stands between the model and its attention. The file is a trace as docs/trace_format.md defines
// it, in F16, with the token ids; all its queries are of the type "decode".
class TraceRecorder : public Attention {
 public:
  // Queries of tokens before first_query_position are not recorded.
  TraceRecorder(const ModelConfig& config, int64_t first_query_position, Attention* recorded);

  absl::Status BeginStep(int64_t num_rows) override;
  absl::Status Append(int layer, const wavekv::TensorView& keys,
                      const wavekv::TensorView& values) override;
  absl::Status Attend(int layer, const wavekv::TensorView& queries,
                      const wavekv::MutableTensorView& output) override;

  // `tokens` are all that were appended; the first context_tokens of them were the prompt.
  absl::Status Write(const std::string& path, absl::Span<const int32_t> tokens,
                     int64_t context_tokens) const;

 private:
  // Of one layer and kv head.
  struct HeadTrace {
    std::vector<float> keys;
    std::vector<float> values;
    std::vector<float> queries;
  };

  HeadTrace& At(int layer, int kv_head) { return heads_[layer * config_.n_kv_heads + kv_head]; }

  const ModelConfig config_;
  const int64_t first_query_position_;
  Attention* const recorded_;
  std::vector<HeadTrace> heads_;
  std::vector<int32_t> positions_;
  int64_t num_tokens_ = 0;  // with those of the step that runs
};

}  // namespace tinylm

#endif  // WAVEKV_EXAMPLES_TINYLM_TRACE_RECORDER_H_
