// Memory in steps of `kWidth` consecutive elements: one load of up to 16 bytes (or two, for float targets of 16-bit logits),
// widened to the type of the arithmetic.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "maths/types.h"

namespace jaxloss::gpu {

__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ double widened(double x) { return x; }
__device__ __forceinline__ float widened(bfloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float widened(float16 x) { return __half2float(__ushort_as_half(x.bits)); }

__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(double x, double& to) { to = x; }
__device__ __forceinline__ void narrow(float x, bfloat16& to) { to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
__device__ __forceinline__ void narrow(float x, float16& to) { to.bits = __half_as_ushort(__float2half_rn(x)); }

constexpr int kVectorBytes = 16;

// The unsigned integer that moves so many bytes at once.
template <int kBytes>
struct Word;
template <>
struct Word<2> {
  using type = uint16_t;
};
template <>
struct Word<4> {
  using type = uint32_t;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

template <class Stored, int kWidth>
struct Step {
  static constexpr int kBytes = kWidth * sizeof(Stored);
  static constexpr int kWordBytes = kBytes < kVectorBytes ? kBytes : kVectorBytes;
  static constexpr int kWords = kBytes / kWordBytes;
  using Load = typename Word<kWordBytes>::type;

  union {
    Load words[kWords];
    Stored stored[kWidth];
  };

  __device__ __forceinline__ Step() {}
  // Read once: leave the cache to others.
  __device__ __forceinline__ explicit Step(const Stored* from) {
#pragma unroll
    for (int i = 0; i < kWords; i++) words[i] = __ldcs(reinterpret_cast<const Load*>(from) + i);
  }
  // Read now and once more: keep it in the cache.
  __device__ __forceinline__ static Step kept(const Stored* from) {
    Step step;
#pragma unroll
    for (int i = 0; i < kWords; i++) step.words[i] = reinterpret_cast<const Load*>(from)[i];
    return step;
  }
  __device__ __forceinline__ void store(Stored* to) const {
#pragma unroll
    for (int i = 0; i < kWords; i++) __stcs(reinterpret_cast<Load*>(to) + i, words[i]);
  }
  __device__ __forceinline__ Accumulator<Stored> operator[](int i) const { return widened(stored[i]); }
  __device__ __forceinline__ void set(int i, Accumulator<Stored> x) { narrow(x, stored[i]); }
};

// Whether every row of `width` elements from `data` begins at a multiple of `step` elements.
template <class Stored>
bool rows_align(const Stored* data, int64_t width, int step) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  const int64_t bytes = step * static_cast<int64_t>(sizeof(Stored));
  return width % step == 0 && address % (bytes < kVectorBytes ? bytes : kVectorBytes) == 0;
}

}  // namespace jaxloss::gpu
