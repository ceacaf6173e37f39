// The number types of a loss: what is stored in memory, and what the arithmetic is done in.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define JAXLOSS_INLINE __host__ __device__ __forceinline__
#elif !defined(JAXLOSS_INLINE)
// Always inlined: the CPU kernels are compiled once per instruction set, and no copy of one may serve another.
#define JAXLOSS_INLINE inline __attribute__((always_inline))
#endif

namespace jaxloss {

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

// Sums, losses and row weights: float32 for everything up to 32 bits, float64 for float64.
template <class Stored>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class Stored>
using Accumulator = typename AccumulatorOf<Stored>::type;

}  // namespace jaxloss
