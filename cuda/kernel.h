// What kernels are written in: CUDA C++ or, for the same source on the CPU, its emulation.
//
// A .cu file is compiled twice: by nvcc, into namespace gpu, and by the C++ compiler with
// WAVEKV_EMULATED_GPU, into namespace emulated_gpu. What differs stands here and in mma.h; a kernel
// includes no CUDA header. Warps are always whole: blocks have a multiple of 32 threads in x, and
// all lanes enter a warp operation. Shared memory is dynamic (SharedMemory), so that the emulator
// can poison it.
#ifndef WAVEKV_CUDA_KERNEL_H_
#define WAVEKV_CUDA_KERNEL_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "cuda/gpu_types.h"
#include "wavekv/types.h"

#ifdef WAVEKV_EMULATED_GPU
#include <algorithm>
#include <atomic>
#include <cstring>

#include "cuda/emulator/simt.h"
#include "storage/float16.h"
#define WAVEKV_GPU_NAMESPACE emulated_gpu
#define WAVEKV_KERNEL static void
#define WAVEKV_DEVICE inline
#define WAVEKV_LAUNCH_BOUNDS(...)
#define WAVEKV_UNROLL
#define threadIdx (::wavekv::emulator::ThreadIdx())
#define blockIdx (::wavekv::emulator::BlockIdx())
#define blockDim (::wavekv::emulator::BlockDim())
#define gridDim (::wavekv::emulator::GridDim())
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "absl/strings/str_cat.h"
#define WAVEKV_GPU_NAMESPACE gpu
#define WAVEKV_KERNEL static __global__ void
#define WAVEKV_DEVICE __device__ __forceinline__
#define WAVEKV_LAUNCH_BOUNDS(...) __launch_bounds__(__VA_ARGS__)
#define WAVEKV_UNROLL _Pragma("unroll")
#endif

namespace wavekv::WAVEKV_GPU_NAMESPACE {

inline constexpr int kWarp = 32;
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

#ifdef WAVEKV_EMULATED_GPU

WAVEKV_DEVICE void SyncBlock() { emulator::SyncBlock(); }
WAVEKV_DEVICE void SyncWarp() { emulator::ExchangeInWarp("SyncWarp", nullptr, 0); }

template <typename T>
T LaneValue(const std::byte* slots, int lane) {
  T value;
  std::memcpy(&value, slots + lane * emulator::kLaneBytes, sizeof(T));
  return value;
}
// Of lane `lane`, modulo 32.
template <typename T>
T Shuffle(T value, int lane) {
  return LaneValue<T>(emulator::ExchangeInWarp("Shuffle", &value, sizeof(T)), lane % kWarp);
}
template <typename T>
T ShuffleXor(T value, int mask) {
  return LaneValue<T>(emulator::ExchangeInWarp("ShuffleXor", &value, sizeof(T)),
                      static_cast<int>(threadIdx.x) % kWarp ^ mask);
}
// Of the lane so many below; lanes without one keep their own.
template <typename T>
T ShuffleUp(T value, int delta) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  return LaneValue<T>(emulator::ExchangeInWarp("ShuffleUp", &value, sizeof(T)),
                      lane < delta ? lane : lane - delta);
}
inline uint32_t Ballot(bool predicate) {
  const std::byte* slots = emulator::ExchangeInWarp("Ballot", &predicate, sizeof(predicate));
  uint32_t mask = 0;
  for (int i = 0; i < kWarp; ++i) mask |= static_cast<uint32_t>(LaneValue<bool>(slots, i)) << i;
  return mask;
}
// Over the warp, for all lanes, in the tree order of xor shuffles.
template <typename T, typename Combine>
T ReduceWarp(T value, const Combine& combine) {
  const std::byte* slots = emulator::ExchangeInWarp("ReduceWarp", &value, sizeof(T));
  T values[kWarp];
  for (int i = 0; i < kWarp; ++i) values[i] = LaneValue<T>(slots, i);
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    for (int i = 0; i < mask; ++i) values[i] = combine(values[i], values[i + mask]);
  }
  return values[0];
}

// The value before. Kernels of other threads' launches may use the same memory.
template <typename T>
T AtomicAdd(T* at, T value) {
  return std::atomic_ref<T>(*at).fetch_add(value);
}
template <typename T>
T AtomicMax(T* at, T value) {
  std::atomic_ref<T> atomic(*at);
  T before = atomic.load();
  while (before < value && !atomic.compare_exchange_weak(before, value)) {
  }
  return before;
}
inline uint32_t AtomicOr(uint32_t* at, uint32_t value) {
  return std::atomic_ref<uint32_t>(*at).fetch_or(value);
}

WAVEKV_DEVICE void FenceDevice() {}

WAVEKV_DEVICE float Exp(float x) { return std::exp(x); }
WAVEKV_DEVICE float Log(float x) { return std::log(x); }
WAVEKV_DEVICE float Sqrt(float x) { return std::sqrt(x); }
WAVEKV_DEVICE float MulAdd(float a, float b, float c) { return std::fma(a, b, c); }
WAVEKV_DEVICE int PopCount(uint32_t x) { return __builtin_popcount(x); }
WAVEKV_DEVICE int PopCount(uint64_t x) { return __builtin_popcountll(x); }
WAVEKV_DEVICE int LeadingZeros(uint32_t x) { return x == 0 ? 32 : __builtin_clz(x); }
// The number of the lowest set bit; x != 0.
WAVEKV_DEVICE int LowestBit(uint32_t x) { return __builtin_ctz(x); }
WAVEKV_DEVICE uint32_t FloatBits(float x) { return std::bit_cast<uint32_t>(x); }
WAVEKV_DEVICE float FloatFromBits(uint32_t x) { return std::bit_cast<float>(x); }
WAVEKV_DEVICE float HalfToFloat(uint16_t bits) { return Float16ToFloat32(bits); }
WAVEKV_DEVICE uint16_t FloatToHalf(float x) { return Float32ToFloat16(x); }
// c plus the inner product of four signed bytes.
WAVEKV_DEVICE int DotBytes(uint32_t a, uint32_t b, int c) {
  for (int i = 0; i < 32; i += 8)
    c += int{static_cast<int8_t>(a >> i)} * static_cast<int8_t>(b >> i);
  return c;
}

// 16 bytes from global to shared memory, both 16-byte aligned; the second zeroes where there is no
// source.
WAVEKV_DEVICE void CopyAsync16(void* shared, const void* global) {
  emulator::CopyAsync(shared, global, 16);
}
WAVEKV_DEVICE void CommitCopies() { emulator::CommitCopies(); }
template <int kUnderWay>
void WaitForCopies() {
  emulator::WaitForCopies(kUnderWay);
}

#else

WAVEKV_DEVICE void SyncBlock() { __syncthreads(); }
WAVEKV_DEVICE void SyncWarp() { __syncwarp(); }
template <typename T>
WAVEKV_DEVICE T Shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
template <typename T>
WAVEKV_DEVICE T ShuffleXor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <typename T>
WAVEKV_DEVICE T ShuffleUp(T value, int delta) {
  return __shfl_up_sync(0xffffffffu, value, delta);
}
WAVEKV_DEVICE uint32_t Ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }
template <typename T, typename Combine>
WAVEKV_DEVICE T ReduceWarp(T value, const Combine& combine) {
  WAVEKV_UNROLL
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value = combine(value, ShuffleXor(value, mask));
  return value;
}

template <typename T>
WAVEKV_DEVICE T AtomicAdd(T* at, T value) {
  return atomicAdd(at, value);
}
WAVEKV_DEVICE int64_t AtomicAdd(int64_t* at, int64_t value) {
  return static_cast<int64_t>(
      atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value)));
}
template <typename T>
WAVEKV_DEVICE T AtomicMax(T* at, T value) {
  return atomicMax(at, value);
}
WAVEKV_DEVICE uint32_t AtomicOr(uint32_t* at, uint32_t value) { return atomicOr(at, value); }

WAVEKV_DEVICE void FenceDevice() { __threadfence(); }

WAVEKV_DEVICE float Exp(float x) { return __expf(x); }
WAVEKV_DEVICE float Log(float x) { return logf(x); }
WAVEKV_DEVICE float Sqrt(float x) { return sqrtf(x); }
WAVEKV_DEVICE float MulAdd(float a, float b, float c) { return fmaf(a, b, c); }
WAVEKV_DEVICE int PopCount(uint32_t x) { return __popc(x); }
WAVEKV_DEVICE int PopCount(uint64_t x) { return __popcll(x); }
WAVEKV_DEVICE int LeadingZeros(uint32_t x) { return __clz(static_cast<int>(x)); }
WAVEKV_DEVICE int LowestBit(uint32_t x) { return __ffs(static_cast<int>(x)) - 1; }
WAVEKV_DEVICE uint32_t FloatBits(float x) { return __float_as_uint(x); }
WAVEKV_DEVICE float FloatFromBits(uint32_t x) { return __uint_as_float(x); }
WAVEKV_DEVICE float HalfToFloat(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
WAVEKV_DEVICE uint16_t FloatToHalf(float x) { return __half_as_ushort(__float2half_rn(x)); }
WAVEKV_DEVICE int DotBytes(uint32_t a, uint32_t b, int c) {
  return __dp4a(static_cast<int>(a), static_cast<int>(b), c);
}

WAVEKV_DEVICE void CopyAsync16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
WAVEKV_DEVICE void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kUnderWay>
WAVEKV_DEVICE void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kUnderWay) : "memory");
}

#endif

WAVEKV_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
WAVEKV_DEVICE int BlockThreads() { return static_cast<int>(blockDim.x); }
// Of unsigned numbers, whose division by 32 takes one instruction.
WAVEKV_DEVICE int LaneIndex() { return static_cast<int>(threadIdx.x % unsigned{kWarp}); }
WAVEKV_DEVICE int WarpIndex() { return static_cast<int>(threadIdx.x / unsigned{kWarp}); }
WAVEKV_DEVICE int BlockWarps() { return static_cast<int>(blockDim.x) / kWarp; }

// For device code; the standard library's are for the host.
template <typename T>
WAVEKV_DEVICE T Min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
WAVEKV_DEVICE T Max(T a, T b) {
  return a < b ? b : a;
}
WAVEKV_DEVICE float Abs(float x) { return x < 0.0f ? -x : x; }

template <typename T>
WAVEKV_DEVICE T SumOfWarp(T value) {
  return ReduceWarp(value, [](T a, T b) { return static_cast<T>(a + b); });
}
template <typename T>
WAVEKV_DEVICE T MaxOfWarp(T value) {
  return ReduceWarp(value, [](T a, T b) { return a < b ? b : a; });
}
// Of this lane and those below.
template <typename T>
WAVEKV_DEVICE T InclusiveSumOfWarp(T value) {
  WAVEKV_UNROLL
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const T below = ShuffleUp(value, delta);
    if (LaneIndex() >= delta) value += below;
  }
  return value;
}

// Hands out the block's dynamic shared memory piece by piece, each aligned to 16 bytes; the same
// calls in every thread. SharedSize counts the same on the host.
class SharedMemory {
 public:
  WAVEKV_DEVICE SharedMemory() {
#ifdef WAVEKV_EMULATED_GPU
    next_ = emulator::SharedMemory();
#else
    extern __shared__ __align__(128) unsigned char wavekv_shared[];
    next_ = reinterpret_cast<std::byte*>(wavekv_shared);
#endif
  }
  template <typename T>
  WAVEKV_DEVICE T* Take(int64_t count) {
    T* const taken = reinterpret_cast<T*>(next_);
    next_ += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
#ifdef WAVEKV_EMULATED_GPU
    if (next_ > emulator::SharedMemory() + (emulator::SharedBytes() + 15) / 16 * 16) std::abort();
#endif
    return taken;
  }

 private:
  std::byte* next_;
};

class SharedSize {
 public:
  template <typename T>
  SharedSize& Add(int64_t count) {
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
    return *this;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

// Over the block, for all threads, in an order that depends on the number of threads alone.
// scratch: [33] in shared memory, free again after the call.
template <typename T, typename Combine>
WAVEKV_DEVICE T ReduceBlock(T value, T identity, T* scratch, const Combine& combine) {
  value = ReduceWarp(value, combine);
  SyncBlock();
  if (LaneIndex() == 0) scratch[WarpIndex()] = value;
  SyncBlock();
  if (WarpIndex() == 0) {
    value = LaneIndex() < BlockWarps() ? scratch[LaneIndex()] : identity;
    value = ReduceWarp(value, combine);
    if (LaneIndex() == 0) scratch[32] = value;
  }
  SyncBlock();
  value = scratch[32];
  SyncBlock();
  return value;
}
template <typename T>
WAVEKV_DEVICE T SumOfBlock(T value, T* scratch) {
  return ReduceBlock(value, T{0}, scratch, [](T a, T b) { return static_cast<T>(a + b); });
}
WAVEKV_DEVICE float MaxOfBlock(float value, float* scratch) {
  return ReduceBlock(value, -kInfinity, scratch, [](float a, float b) { return a < b ? b : a; });
}
// The sum of the threads before this one; *total: of all. scratch: [33] in shared memory, free
// again after the call.
template <typename T>
WAVEKV_DEVICE T ExclusiveSumOfBlock(T value, T* scratch, T* total) {
  const T inclusive = InclusiveSumOfWarp(value);
  SyncBlock();
  if (LaneIndex() == kWarp - 1) scratch[WarpIndex()] = inclusive;
  SyncBlock();
  if (WarpIndex() == 0) {
    const T of_warp = LaneIndex() < BlockWarps() ? scratch[LaneIndex()] : T{0};
    const T upto = InclusiveSumOfWarp(of_warp);
    scratch[LaneIndex()] = upto - of_warp;
    if (LaneIndex() == kWarp - 1) scratch[32] = upto;
  }
  SyncBlock();
  const T before = scratch[WarpIndex()] + inclusive - value;
  *total = scratch[32];
  SyncBlock();
  return before;
}

// Elements of rows.
WAVEKV_DEVICE float BFloatToFloat(uint16_t bits) {
  return FloatFromBits(static_cast<uint32_t>(bits) << 16);
}
// To nearest, ties to even; NaN stays NaN.
WAVEKV_DEVICE uint16_t FloatToBFloat(float value) {
  const uint32_t bits = FloatBits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
WAVEKV_DEVICE float LoadAs(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return dtype == DType::kFloat16 ? HalfToFloat(bits) : BFloatToFloat(bits);
}
WAVEKV_DEVICE void StoreAs(void* data, DType dtype, int64_t index, float value) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] =
        dtype == DType::kFloat16 ? FloatToHalf(value) : FloatToBFloat(value);
  }
}
WAVEKV_DEVICE bool IsFinite(float value) { return (FloatBits(value) & 0x7f800000u) != 0x7f800000u; }

// 16 bytes that are moved as one.
struct alignas(16) Bytes16 {
  uint32_t words[4];
};

#ifdef WAVEKV_EMULATED_GPU

// Queues kernel(args...) on the stream. grid.y and z are at most 65535.
template <typename... Params, typename... Args>
absl::Status Launch(const char* name, void (*kernel)(Params...), GridShape grid, int threads,
                    int64_t shared_bytes, GpuStream stream, Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return absl::OkStatus();
  static_cast<emulator::Stream*>(stream)->Launch(name, [=] {
    emulator::RunGrid(name, {grid.x, grid.y, grid.z}, {static_cast<unsigned>(threads), 1, 1},
                      static_cast<size_t>(shared_bytes),
                      [&] { kernel(static_cast<Params>(args)...); });
  });
  return absl::OkStatus();
}

#else

template <typename... Params, typename... Args>
absl::Status Launch(const char* name, void (*kernel)(Params...), GridShape grid, int threads,
                    int64_t shared_bytes, GpuStream stream, Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return absl::OkStatus();
  // More than a kernel may have by default.
  constexpr int64_t kSharedBytesDefault = 48 << 10;
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kSharedBytesDefault) {
    // As much as the device has, always the same: another thread may be about to launch the kernel
    // with more.
    int device = 0, most = 0;
    error = cudaGetDevice(&device);
    if (error == cudaSuccess) {
      error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    }
    if (error == cudaSuccess) {
      error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                   cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    }
  }
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config = {};
    config.gridDim = {grid.x, grid.y, grid.z};
    config.blockDim = {static_cast<unsigned>(threads), 1, 1};
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    error = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
  }
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();  // not for others of this thread who look for theirs
  return absl::InternalError(
      absl::StrCat("CUDA: ", name, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error)));
}

#endif

}  // namespace wavekv::WAVEKV_GPU_NAMESPACE

#endif  // WAVEKV_CUDA_KERNEL_H_
