#ifndef WAVEKV_CUDA_WORKSPACE_LAYOUT_H_
#define WAVEKV_CUDA_WORKSPACE_LAYOUT_H_

#include <cstddef>
#include <cstdint>

namespace wavekv {

// Hands out pieces of a workspace, each aligned to 256 bytes as the workspace is, or counts them.
class WorkspaceLayout {
 public:
  // nullptr: only counts, and pieces are nullptr.
  explicit WorkspaceLayout(std::byte* base) : base_(base) {}

  template <typename T>
  void Place(T*& pointer, int64_t count) {
    constexpr int64_t kAlignment = 256;
    pointer = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
  }
  // Bytes so far.
  int64_t used() const { return used_; }

 private:
  std::byte* const base_;
  int64_t used_ = 0;
};

}  // namespace wavekv

#endif  // WAVEKV_CUDA_WORKSPACE_LAYOUT_H_
