// The functions that the losses are written in, for one float or one double, on the host and on the device.
// `cpu/simd.h` gives the same names for vectors, so a loss is written once for all three.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#include "maths/instructions.cuh"
#endif
#include "maths/types.h"

namespace jaxloss {

JAXLOSS_INLINE float select(bool condition, float yes, float no) { return condition ? yes : no; }
JAXLOSS_INLINE double select(bool condition, double yes, double no) { return condition ? yes : no; }

JAXLOSS_INLINE float absolute(float x) { return fabsf(x); }
JAXLOSS_INLINE double absolute(double x) { return fabs(x); }

// Of −0 too.
#ifdef __CUDA_ARCH__
JAXLOSS_INLINE bool is_negative(float x) { return __float_as_int(x) < 0; }
JAXLOSS_INLINE bool is_negative(double x) { return __double_as_longlong(x) < 0; }
#else
JAXLOSS_INLINE bool is_negative(float x) { return std::signbit(x); }
JAXLOSS_INLINE bool is_negative(double x) { return std::signbit(x); }
#endif

// Not one operation with a sum that follows, in which what overflows would not.
JAXLOSS_INLINE float exponential(float x) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(expf(x), 0.0f);
#else
  return expf(x);
#endif
}
JAXLOSS_INLINE double exponential(double x) { return exp(x); }

// e^−x for x ≥ 0. On a GPU by one instruction, 0 where the result is subnormal: the exponent of 2 is rounded, by more
// than the result may be for a large x; what e^−x is beyond the power of 2 that was taken is so near 1 that 1 + its
// logarithm is all of it.
JAXLOSS_INLINE float decay_within_range(float x) {  // up to 104
#ifdef __CUDA_ARCH__
  const float exponent = x * -1.44269504088896341f;
  const float log_of_2 = 0.693147182f, too_much = 1.90465430e-9f;  // that log_of_2 is above log 2
  const float beyond = fmaf(exponent, too_much, fmaf(exponent, -log_of_2, -x));
  const float power = gpu::power_of_two(exponent);
  return fmaf(power, beyond, power);
#else
  return expf(-x);
#endif
}
JAXLOSS_INLINE float decay_of(float x) {
#ifdef __CUDA_ARCH__
  return decay_within_range(gpu::smaller_or_nan(x, 104.0f));  // of an infinite one only a NaN would come
#else
  return expf(-x);
#endif
}
JAXLOSS_INLINE double decay_of(double x) { return exp(-x); }

// x / (1 + x) for x in [0, 1]; on a GPU by a reciprocal within 1 ulp, and what the quotient lacks then.
JAXLOSS_INLINE float share_of_one_plus(float x) {
#ifdef __CUDA_ARCH__
  const float whole = 1 + x, inverse = gpu::reciprocal(whole), share = __fmul_rn(x, inverse);
  return fmaf(fmaf(-share, whole, x), inverse, share);
#else
  return x / (1 + x);
#endif
}
JAXLOSS_INLINE double share_of_one_plus(double x) { return x / (1 + x); }

// log(1 + x) for x in [0, 1], where 1 + x itself would lose the digits of a small x. On a GPU: x + x² q(x), within 1.1
// ulp, with the q of degree 7 whose largest error relative to the logarithm is least; the library's function, which is
// right for every x, is twice as long.
JAXLOSS_INLINE float log_one_plus(float x) {
#ifdef __CUDA_ARCH__
  float q = 0x1.5f96d2p-8f;
  q = fmaf(q, x, -0x1.ec9912p-6f);
  q = fmaf(q, x, 0x1.446bfap-4f);
  q = fmaf(q, x, -0x1.19ad8ap-3f);
  q = fmaf(q, x, 0x1.884450p-3f);
  q = fmaf(q, x, -0x1.fd1320p-3f);
  q = fmaf(q, x, 0x1.5535dap-2f);
  q = fmaf(q, x, -0x1.ffff14p-2f);
  return fmaf(x * x, q, x);
#else
  return log1pf(x);
#endif
}
JAXLOSS_INLINE double log_one_plus(double x) { return log1p(x); }

// e^x − 1 for x ≤ 0, where e^x itself would lose the digits of a small x.
JAXLOSS_INLINE float exponential_minus_one(float x) { return expm1f(x); }
JAXLOSS_INLINE double exponential_minus_one(double x) { return expm1(x); }

JAXLOSS_INLINE float logarithm(float x) { return logf(x); }
JAXLOSS_INLINE double logarithm(double x) { return log(x); }

JAXLOSS_INLINE float hyperbolic_tangent(float x) { return tanhf(x); }
JAXLOSS_INLINE double hyperbolic_tangent(double x) { return tanh(x); }

// A weight times a value, where a weight of zero takes the value out even if it is infinite or NaN.
template <class Value>
JAXLOSS_INLINE Value weighted(Value weight, Value value) {
  return select(weight == Value(0), Value(0), weight * value);
}

// A NaN stays a NaN in all of these: it is never the bound that is returned for it.
template <class Value>
JAXLOSS_INLINE Value at_least(Value x, Value bound) {
  return select(x < bound, bound, x);
}
template <class Value>
JAXLOSS_INLINE Value at_most(Value x, Value bound) {
  return select(x > bound, bound, x);
}

}  // namespace jaxloss
