// Synthetic heads as a trace file, for whatever reads recorded ones.
#ifndef WAVEKV_TOOLS_SYNTHETIC_SYNTHETIC_TRACE_H_
#define WAVEKV_TOOLS_SYNTHETIC_SYNTHETIC_TRACE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "tools/synthetic/synthetic_head.h"
#include "wavekv/types.h"

namespace wavekv::synthetic {

// Writes heads as the kv heads of one layer, in the format of docs/trace_format.md; query types are
// "decode" and "needle". Keys and values are drawn while the file is written: memory is that of a
// few blocks, whatever the length. INVALID_ARGUMENT when the heads differ in tokens, queries,
// head_dim, group or number of needles.
absl::Status WriteSyntheticTrace(absl::Span<const SyntheticHead> heads, DType dtype,
                                 const std::string& path);

}  // namespace wavekv::synthetic

#endif  // WAVEKV_TOOLS_SYNTHETIC_SYNTHETIC_TRACE_H_
