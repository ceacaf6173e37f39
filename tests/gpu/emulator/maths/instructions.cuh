// The instructions of `cuda/maths/instructions.cuh`, for the emulator.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace jaxloss::gpu {

inline float smaller_or_nan(float a, float b) { return a != a ? a : b != b ? b : fminf(a, b); }
inline float larger_or_nan(float a, float b) { return a != a ? a : b != b ? b : fmaxf(a, b); }
template <bool>
inline uint32_t larger_sizes_or_nan(uint32_t a, uint32_t b) {
  const auto larger = [&](int shift) { return std::max(a >> shift & 0x7fffu, b >> shift & 0x7fffu) << shift; };
  return larger(0) | larger(16);
}
inline float without_subnormals(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }
inline float power_of_two(float x) { return without_subnormals(exp2f(x)); }
inline float log_of_two(float x) { return log2f(x); }
inline float reciprocal(float x) { return without_subnormals(1 / without_subnormals(x)); }
inline double reciprocal(double x) { return 1 / x; }
inline float if_equal(int a, int b, float x, float otherwise) { return a == b ? x : otherwise; }

}  // namespace jaxloss::gpu
