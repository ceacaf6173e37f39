// What the chip computes of floats in one instruction, where the CUDA library takes several.
#pragma once

#include <cstdint>

namespace jaxloss::gpu {

// The smaller and the larger of two numbers, or NaN if one of them is.
__device__ __forceinline__ float smaller_or_nan(float a, float b) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
__device__ __forceinline__ float larger_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// Of two numbers of 16 bits in each word those that are farther from 0, or NaN; their signs are any.
template <bool is_bfloat16>
__device__ __forceinline__ uint32_t larger_sizes_or_nan(uint32_t a, uint32_t b) {
#if __CUDA_ARCH__ >= 860
  uint32_t result;
  if constexpr (is_bfloat16) {
    asm("max.NaN.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  } else {
    asm("max.NaN.xorsign.abs.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  }
  return result;
#else
  return __vmaxu2(a & 0x7fff7fffu, b & 0x7fff7fffu);  // a NaN has more bits than an infinity
#endif
}

// 2^x, log₂ x (of 1 off by 2^−22) and 1 / x, within 2 ulp and 1 ulp where not said otherwise, by one instruction each;
// subnormal results are 0.
__device__ __forceinline__ float power_of_two(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float log_of_two(float x) {
  float result;
  asm("lg2.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ double reciprocal(double x) { return 1 / x; }

// x where a = b, else `otherwise`. Of a chain of such choices the compiler would make an array in memory.
__device__ __forceinline__ float if_equal(int a, int b, float x, float otherwise) {
  float result;
  asm("{\n"
      ".reg .pred equal;\n"
      "setp.eq.s32 equal, %1, %2;\n"
      "selp.f32 %0, %3, %4, equal;\n"
      "}"
      : "=f"(result)
      : "r"(a), "r"(b), "f"(x), "f"(otherwise));
  return result;
}

}  // namespace jaxloss::gpu
