// Numbers in memory, 16 bytes at a time: as they are stored, and as the arithmetic wants them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <type_traits>

#include "maths/instructions.cuh"
#include "maths/types.h"

namespace jaxloss::gpu {

constexpr int kVectorBytes = 16;
constexpr int kStepsAligned = 128 / kVectorBytes;  // a step of a warp's lanes, from such a one on, is whole sectors

template <class Stored>
constexpr int kPerVector = kVectorBytes / static_cast<int>(sizeof(Stored));

__device__ __forceinline__ float number(float x) { return x; }
__device__ __forceinline__ double number(double x) { return x; }
__device__ __forceinline__ float number(bfloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float number(float16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <class Stored>
__device__ __forceinline__ Stored stored(Accumulator<Stored> x) {
  return x;
}
template <>
__device__ __forceinline__ bfloat16 stored<bfloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
__device__ __forceinline__ float16 stored<float16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

template <class Stored>
__device__ __forceinline__ void unpack(uint4 vector, Accumulator<Stored>* x) {
  const uint32_t word[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (std::is_same_v<Stored, float>) {
      x[i] = __uint_as_float(word[i]);
    } else if constexpr (std::is_same_v<Stored, bfloat16>) {
      x[2 * i] = __uint_as_float(word[i] << 16);
      x[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
    } else if constexpr (std::is_same_v<Stored, float16>) {
      __half2 pair;
      memcpy(&pair, &word[i], sizeof(pair));
      const float2 wide = __half22float2(pair);
      x[2 * i] = wide.x;
      x[2 * i + 1] = wide.y;
    } else if (i < 2) {
      x[i] = __hiloint2double(static_cast<int>(word[2 * i + 1]), static_cast<int>(word[2 * i]));
    }
  }
}

template <class Stored>
__device__ __forceinline__ uint4 pack(const Accumulator<Stored>* x) {
  uint32_t word[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (std::is_same_v<Stored, float>) {
      word[i] = __float_as_uint(x[i]);
    } else if constexpr (std::is_same_v<Stored, bfloat16>) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
      memcpy(&word[i], &pair, sizeof(pair));
    } else if constexpr (std::is_same_v<Stored, float16>) {
      const __half2 pair = __floats2half2_rn(x[2 * i], x[2 * i + 1]);
      memcpy(&word[i], &pair, sizeof(pair));
    } else {
      word[i] = static_cast<uint32_t>(i % 2 ? __double2hiint(x[i / 2]) : __double2loint(x[i / 2]));
    }
  }
  return make_uint4(word[0], word[1], word[2], word[3]);
}

// What of the data that was read the caches may lose first: this, or what was used least recently.
enum class Caching { evict_first, normal };

// Of rows that a kernel reads once and holds. One that only reads is faster if they may go at once; one that writes as
// much is slower by up to 7 % (on an H100: see benchmarks/README.md).
template <bool writes>
constexpr Caching kReadOnce = writes ? Caching::normal : Caching::evict_first;

// `count` consecutive numbers in registers, still as they are stored.
template <class Stored, int count>
struct Packed {
  static constexpr int vectors = count / kPerVector<Stored>;
  static_assert(vectors * kPerVector<Stored> == count);
  uint4 vector[vectors];

  __device__ __forceinline__ void numbers(Accumulator<Stored>* x) const {
#pragma unroll
    for (int i = 0; i < vectors; i++) unpack<Stored>(vector[i], x + i * kPerVector<Stored>);
  }
};

// Whether all numbers of a vector, of 16 bits each, are at most as far from 0 as a number of 16 bits; none is NaN then.
template <class Stored>
__device__ __forceinline__ bool within(const Packed<Stored, kPerVector<Stored>>& packed, Stored most) {
  constexpr bool is_bfloat16 = std::is_same_v<Stored, bfloat16>;
  using Pair = std::conditional_t<is_bfloat16, __nv_bfloat162, __half2>;
  const uint4 all = packed.vector[0];
  const uint32_t largest = larger_sizes_or_nan<is_bfloat16>(larger_sizes_or_nan<is_bfloat16>(all.x, all.y),
                                                            larger_sizes_or_nan<is_bfloat16>(all.z, all.w)),
                 sizes = largest & 0x7fff7fffu, bound = most.bits * 0x10001u;
  Pair x, y;
  memcpy(&x, &sizes, sizeof(x));
  memcpy(&y, &bound, sizeof(y));
  return __hble2(x, y);
}

__device__ __forceinline__ bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0;
}

// From an aligned address; where the caches are told something, in global memory.
template <int count, Caching caching, class Stored>
__device__ __forceinline__ Packed<Stored, count> load(const Stored* from) {
  Packed<Stored, count> packed;
#pragma unroll
  for (int i = 0; i < packed.vectors; i++) {
    const uint4* vector = reinterpret_cast<const uint4*>(from) + i;
    packed.vector[i] = caching == Caching::evict_first ? __ldcs(vector) : *vector;
  }
  return packed;
}

// To an aligned address in global memory.
template <class Stored, Caching caching = Caching::evict_first, int count>
__device__ __forceinline__ void store(Stored* to, const Accumulator<Stored> (&x)[count]) {
#pragma unroll
  for (int i = 0; i < count / kPerVector<Stored>; i++) {
    uint4* vector = reinterpret_cast<uint4*>(to) + i;
    const uint4 packed = pack<Stored>(x + i * kPerVector<Stored>);
    if constexpr (caching == Caching::evict_first) {
      __stcs(vector, packed);
    } else {
      *vector = packed;
    }
  }
}

// To an aligned address in shared memory.
template <class Stored, int count>
__device__ __forceinline__ void store_shared(Stored* to, const Accumulator<Stored> (&x)[count]) {
#pragma unroll
  for (int i = 0; i < count / kPerVector<Stored>; i++) {
    reinterpret_cast<uint4*>(to)[i] = pack<Stored>(x + i * kPerVector<Stored>);
  }
}

// A run of numbers in memory: single ones up to the first aligned address, then steps of `kPerVector<Stored>` numbers,
// then single ones again. The single ones, before and after, are its edges.
template <class Stored>
struct Span {
  static constexpr int step = kPerVector<Stored>;
  int64_t head, steps, edges;

  // Arrays that run along in equal steps must be aligned where the first one is, else all numbers are edges.
  template <class... Along>
  __device__ __forceinline__ Span(int64_t count, const Stored* first, const Along*... along) {
    const uintptr_t misaligned = reinterpret_cast<uintptr_t>(first) % kVectorBytes;
    head = misaligned ? (kVectorBytes - misaligned) / sizeof(Stored) : 0;
    if (head >= count || !(aligned(along + head) && ... && true)) head = count;
    steps = (count - head) / step;
    edges = count - steps * step;
  }

  __device__ __forceinline__ int64_t edge(int64_t i) const { return i < head ? i : i + steps * step; }
  __device__ __forceinline__ int64_t start_of(int64_t i) const { return head + i * step; }
};

template <int count>
using Count = std::integral_constant<int, count>;

// Calls body(Count<n>, i) so that the indices i, i + stride, … (n of them) cover begin, begin + stride, … < end:
// `batch` at once while there are as many, so that their loads are in flight together.
template <int batch, class Index, class Body>
__device__ __forceinline__ void for_batches(Index begin, Index end, Index stride, Body body) {
  Index i = begin;
  for (; i + (batch - 1) * stride < end; i += batch * stride) body(Count<batch>{}, i);
  for (; i < end; i += stride) body(Count<1>{}, i);
}

// The same with half as many at once where `batch` are too many, then with half of those, …
template <int batch, class Index, class Body>
__device__ __forceinline__ void for_halving_batches(Index begin, Index end, Index stride, Body body) {
  Index i = begin;
  for (; i + (batch - 1) * stride < end; i += batch * stride) body(Count<batch>{}, i);
  if constexpr (batch > 1) for_halving_batches<batch / 2>(i, end, stride, body);
}

}  // namespace jaxloss::gpu
