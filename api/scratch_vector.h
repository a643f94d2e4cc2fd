// Vectors whose new elements are whatever their memory holds.
#ifndef WAVEKV_API_SCRATCH_VECTOR_H_
#define WAVEKV_API_SCRATCH_VECTOR_H_

#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace wavekv {

// Elements that are to be written anyway are not cleared first: what a step computes is a multiple
// of the nearest caches.
template <typename T>
struct ScratchAllocator : std::allocator<T> {
  static_assert(std::is_trivially_default_constructible_v<T>);

  template <typename U>
  struct rebind {
    using other = ScratchAllocator<U>;
  };

  template <typename U>
  void construct(U* at) {
    ::new (static_cast<void*>(at)) U;
  }
  template <typename U, typename... Arguments>
  void construct(U* at, Arguments&&... arguments) {
    ::new (static_cast<void*>(at)) U(std::forward<Arguments>(arguments)...);
  }
};

// A std::vector but for resize(), which leaves new elements as they are.
template <typename T>
using ScratchVector = std::vector<T, ScratchAllocator<T>>;

}  // namespace wavekv

#endif  // WAVEKV_API_SCRATCH_VECTOR_H_
