// The instructions of `cuda/maths/instructions.cuh`, for the emulator.
#pragma once

#include <cmath>

namespace jaxloss::gpu {

inline float smaller_or_nan(float a, float b) { return a != a ? a : b != b ? b : fminf(a, b); }
inline float larger_or_nan(float a, float b) { return a != a ? a : b != b ? b : fmaxf(a, b); }
inline float without_subnormals(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }
inline float power_of_two(float x) { return without_subnormals(exp2f(x)); }
inline float log_of_two(float x) { return log2f(x); }
inline float reciprocal(float x) { return without_subnormals(1 / without_subnormals(x)); }
inline double reciprocal(double x) { return 1 / x; }
inline float if_equal(int a, int b, float x, float otherwise) { return a == b ? x : otherwise; }

}  // namespace jaxloss::gpu
