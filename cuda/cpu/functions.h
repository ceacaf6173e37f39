// The functions of `maths/scalar.h` for vectors, under the same names, so that the losses are written once. Their
// accuracy is tested over all of their range by `tests/losses/test_accuracy.py`.
#pragma once

#include "cpu/simd.h"

namespace jaxloss::JAXLOSS_ISA {

using jaxloss::absolute;
using jaxloss::decay_of;
using jaxloss::exponential;
using jaxloss::exponential_minus_one;
using jaxloss::hyperbolic_tangent;
using jaxloss::is_negative;
using jaxloss::log_one_plus;
using jaxloss::logarithm;
using jaxloss::select;
using jaxloss::share_of_one_plus;

JAXLOSS_INLINE Integers word(Vector x) { return bits<Integers>(x); }
JAXLOSS_INLINE Vector float_of(Integers word) { return bits<Vector>(word); }

JAXLOSS_INLINE Integers is_negative(Vector x) { return word(x) < Integers(0); }
JAXLOSS_INLINE Vector absolute(Vector x) { return float_of(word(x) & Integers(0x7fffffff)); }

// x = k log 2 + r, |r| ≤ ½ log 2. Adding 1.5 × 2^23 rounds to an integer, and leaves it in the lowest bits of the
// word: k + 127, which shifted to the exponent's place is 2^k.
struct PowerOfTwo {
  Vector r;
  Integers biased;  // k + 127, below bits that a shift to the left moves out

  JAXLOSS_INLINE explicit PowerOfTwo(Vector x) {
    const Vector round(12582912.0 + 127);
    const Vector rounded = x * Vector(1.44269504088896341) + round;
    const Vector k = rounded - round;
    r = (x - k * Vector(0.693359375)) - k * Vector(-2.12194440e-4);
    biased = word(rounded);
  }
};

// e^r − 1 − r for |r| ≤ ½ log 2 (Taylor's coefficients bent to the interval).
JAXLOSS_INLINE Vector exponential_beyond_first_order(Vector r) {
  Vector p(1.9875691500e-4);
  p = p * r + Vector(1.3981999507e-3);
  p = p * r + Vector(8.3334519073e-3);
  p = p * r + Vector(4.1665795894e-2);
  p = p * r + Vector(1.6666665459e-1);
  p = p * r + Vector(5.0000001201e-1);
  return p * (r * r);
}

// e^x within 2 ulp over the whole range, subnormal results and ±Inf and NaN included: 2^k in two factors, so that
// neither overflows on the way to a subnormal. To infinity it goes by a choice: the last product may be one operation
// with a sum that follows, and what would overflow then does not.
JAXLOSS_INLINE Vector exponential(Vector x) {
  const PowerOfTwo power(at_most(at_least(x, Vector(-104.0)), Vector(89.0)));
  const Vector p = exponential_beyond_first_order(power.r) + power.r + Vector(1.0);
  const Integers k = power.biased - Integers(0x4b400000 + 127), half = k >> 1, bias(127);
  const Vector of_finite = p * float_of((half + bias) << 23) * float_of((k - half + bias) << 23);
  return select(x > Vector(88.7228394), Vector(__builtin_inf()), of_finite);
}

// e^x for x ≤ 0, the same but for results below the smallest normal number, which may be zero: 2^k in one factor.
JAXLOSS_INLINE Vector exponential_of_negative(Vector x) {
  const Vector least(-88.0);  // of which k + 127 is 0
  const PowerOfTwo power(at_least(x, least));
  const Vector p = exponential_beyond_first_order(power.r) + power.r + Vector(1.0);
  return p * float_of(power.biased << 23);
}
JAXLOSS_INLINE double exponential_of_negative(double x) { return exponential(x); }

JAXLOSS_INLINE Vector decay_of(Vector x) { return exponential(-x); }
JAXLOSS_INLINE Vector share_of_one_plus(Vector x) { return x / (Vector(1.0) + x); }

// e^x − 1 for x ≤ 0 within 2 ulp: 2^k (e^r − 1) + (2^k − 1), in which nothing cancels.
JAXLOSS_INLINE Vector exponential_minus_one(Vector x) {
  const PowerOfTwo power(at_least(x, Vector(-30.0)));  // −1 from here on
  const Vector p = exponential_beyond_first_order(power.r) + power.r;
  const Vector scale = float_of(power.biased << 23);
  return p * scale + (scale - Vector(1.0));
}

// log(1 + x) for x in [−½, 1] = 2 artanh(s), s = x / (2 + x), |s| ≤ 1/3: the odd series needs no range reduction, and
// its terms fall by at least 9. Its first term is 2 s = x − x s, of which no digit of a small x is lost.
JAXLOSS_INLINE Vector log_one_plus(Vector x) {
  const Vector s = x / (Vector(2.0) + x);
  const Vector t = s * s;
  Vector p(2.0 / 17);
  p = p * t + Vector(2.0 / 15);
  p = p * t + Vector(2.0 / 13);
  p = p * t + Vector(2.0 / 11);
  p = p * t + Vector(2.0 / 9);
  p = p * t + Vector(2.0 / 7);
  p = p * t + Vector(2.0 / 5);
  p = p * t + Vector(2.0 / 3);
  return x + s * (p * t - x);
}

// tanh x = −h / (2 + h), h = e^−2|x| − 1, of which no digits are lost however small x is.
JAXLOSS_INLINE Vector hyperbolic_tangent(Vector x) {
  const Vector size = absolute(x), h = exponential_minus_one(-(size + size));
  const Vector of_size = -h / (Vector(2.0) + h);
  return select(x < Vector(0.0), -of_size, of_size);
}

// tanh x and its derivative sech² x = 4 d / (1 + d)², d = e^−2|x|, by one exponential and one quotient: each right
// relative to itself, of a small x and where tanh x is nearly 1.
template <class Value>
struct TangentAndSlope;
template <>
struct TangentAndSlope<Vector> {
  Vector tangent, decay, inverse;

  JAXLOSS_INLINE explicit TangentAndSlope(Vector x) {
    const Vector size = absolute(x);
    const PowerOfTwo power(at_least(-(size + size), Vector(-88.0)));  // of which 2^k is 0
    const Vector p = exponential_beyond_first_order(power.r) + power.r, scale = float_of(power.biased << 23);
    decay = p * scale + scale;
    inverse = Vector(1.0) / (Vector(1.0) + decay);
    const Vector decay_less_one = p * scale + (scale - Vector(1.0));
    tangent = float_of(word(-decay_less_one * inverse) | (word(x) & Integers(INT32_MIN)));
  }
  JAXLOSS_INLINE Vector slope() const { return Vector(4.0) * decay * inverse * inverse; }
};
template <>
struct TangentAndSlope<double> {
  double x, tangent;

  JAXLOSS_INLINE explicit TangentAndSlope(double x_) : x(x_), tangent(hyperbolic_tangent(x_)) {}
  JAXLOSS_INLINE double slope() const {
    const double decay = exponential(-2 * absolute(x)), inverse = 1 / (1 + decay);
    return 4 * decay * inverse * inverse;
  }
};

// log x within 2 ulp, of every float. x = 2^k m, ½ √2 ≤ m < √2.
JAXLOSS_INLINE Vector logarithm(Vector x) {
  const Integers subnormal = x < Vector(1.17549435e-38);
  const Integers of_normal = word(select(subnormal, x * Vector(0x1p25), x));
  const Integers exponent = (of_normal - Integers(0x3f3504f3)) >> 23;
  const Vector m = float_of(of_normal - (exponent << 23));
  const Vector k = converted(exponent + (subnormal & Integers(-25)));
  const Vector log = k * Vector(0.693359375) + (log_one_plus(m - Vector(1.0)) + k * Vector(-2.12194440e-4));
  const Vector zero(0.0), infinity(__builtin_inf());
  const Vector of_positive = select(x < infinity, log, x);
  return select(x > zero, of_positive, select(x == zero, -infinity, Vector(__builtin_nan(""))));
}

JAXLOSS_INLINE bool is_finite(float x) { return x - x == 0; }
JAXLOSS_INLINE bool is_finite(double x) { return x - x == 0; }

}  // namespace jaxloss::JAXLOSS_ISA
