// Clusters segments on a GPU, for one build thread.
#ifndef WAVEKV_API_GPU_BUILDER_H_
#define WAVEKV_API_GPU_BUILDER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "api/gpu_context.h"
#include "cuda/cluster_segments.h"
#include "storage/segment.h"
#include "wavekv/model_spec.h"
#include "wavekv/options.h"

namespace wavekv {

// What a head's rows are taken from: chunks, or sealed parts that are to become one.
struct GpuBuildSource {
  std::vector<KvRange> ranges;
  std::vector<const ClusterIndex*> parts;  // on the host, with pointers of the device
};

// All work is queued on a stream of its own and waited for by the calling thread alone. All memory
// is reserved when it is made: that of one segment, all kv heads at once.
//
// Threads: one call at a time.
class GpuBuilder {
 public:
  static absl::StatusOr<std::unique_ptr<GpuBuilder>> Create(std::shared_ptr<GpuContext> context,
                                                            const ModelSpec& model,
                                                            const IndexOptions& index);

  // The sealed heads of positions [begin, begin + num_tokens), paid for by `account`.
  // RESOURCE_EXHAUSTED from the account; INTERNAL from the device.
  absl::StatusOr<std::vector<SealedHead>> Build(absl::Span<const GpuBuildSource> heads,
                                                int64_t begin, int64_t num_tokens,
                                                MemoryAccount& account);

  static int64_t WorkspaceBytes(const GpuOperations& operations, const ModelSpec& model,
                                const IndexOptions& index);

 private:
  // Pieces of the workspace, of all heads.
  struct Buffers {
    GpuListRowsTask* list_tasks = nullptr;
    GpuClusterTask* cluster_tasks = nullptr;
    GpuWriteIndexTask* write_tasks = nullptr;
    KvRange* ranges = nullptr;
    TokenRow* rows = nullptr;
    uint32_t* offsets = nullptr;
    uint32_t* members = nullptr;
    uint32_t* super_offsets = nullptr;
    uint32_t* counts = nullptr;
    std::byte* scratch = nullptr;
    int64_t bytes = 0;
  };
  static Buffers LayOut(const GpuOperations& operations, const ModelSpec& model,
                        const IndexOptions& index, std::byte* base);

  GpuBuilder(std::shared_ptr<GpuContext> context, const ModelSpec& model, const IndexOptions& index)
      : context_(std::move(context)), model_(model), index_(index) {}
  absl::Status Await();
  template <typename T>
  absl::Status Upload(const std::vector<T>& values, T* target);
  absl::Status Queue(absl::Span<const GpuBuildSource> heads, int64_t begin, int64_t num_tokens,
                     MemoryAccount& account, std::vector<SealedHead>& sealed);
  absl::StatusOr<Extent> Allocate(MemoryAccount& account, int64_t bytes);
  absl::Status ListRows(absl::Span<const GpuBuildSource> heads, int64_t begin);

  const std::shared_ptr<GpuContext> context_;
  const ModelSpec& model_;
  const IndexOptions& index_;
  GpuOwnStream stream_;
  GpuEvent event_;
  std::shared_ptr<GpuPiece> workspace_;
  Buffers buffers_;
};

}  // namespace wavekv

#endif  // WAVEKV_API_GPU_BUILDER_H_
