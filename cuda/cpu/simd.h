// Vectors of floats for the CPU kernels: GCC's and Clang's vector types in a class, with the names of `maths/scalar.h`,
// so that the losses are written once. `VECTOR_BYTES` is the register width of the instruction set a file is compiled
// for.
//
// Everything lives in the namespace of the instruction set (`JAXLOSS_ISA`) and is always inlined: the linker must never
// pick the AVX-512 copy of a function for the baseline.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "maths/scalar.h"

namespace jaxloss::JAXLOSS_ISA {

using jaxloss::absolute;
using jaxloss::exponential;
using jaxloss::exponential_minus_one;
using jaxloss::hyperbolic_tangent;
using jaxloss::log_one_plus;
using jaxloss::logarithm;
using jaxloss::select;

constexpr int kLanes = VECTOR_BYTES / 4;

using FloatLanes = float __attribute__((vector_size(VECTOR_BYTES)));
using IntLanes = int32_t __attribute__((vector_size(VECTOR_BYTES)));
using HalfwordLanes = uint16_t __attribute__((vector_size(VECTOR_BYTES / 2)));

template <class To, class From>
JAXLOSS_INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

JAXLOSS_INLINE IntLanes integers(int32_t x) { return IntLanes{} + x; }

struct Vector {
  FloatLanes lanes;

  Vector() = default;
  JAXLOSS_INLINE Vector(FloatLanes lanes) : lanes(lanes) {}
  JAXLOSS_INLINE explicit Vector(double x) : lanes(FloatLanes{} + static_cast<float>(x)) {}

  JAXLOSS_INLINE friend Vector operator+(Vector a, Vector b) { return a.lanes + b.lanes; }
  JAXLOSS_INLINE friend Vector operator-(Vector a, Vector b) { return a.lanes - b.lanes; }
  JAXLOSS_INLINE friend Vector operator*(Vector a, Vector b) { return a.lanes * b.lanes; }
  JAXLOSS_INLINE friend Vector operator/(Vector a, Vector b) { return a.lanes / b.lanes; }
  JAXLOSS_INLINE friend Vector operator-(Vector a) { return -a.lanes; }
  JAXLOSS_INLINE friend IntLanes operator<(Vector a, Vector b) { return a.lanes < b.lanes; }
  JAXLOSS_INLINE friend IntLanes operator>(Vector a, Vector b) { return a.lanes > b.lanes; }
  JAXLOSS_INLINE friend IntLanes operator==(Vector a, Vector b) { return a.lanes == b.lanes; }
};

JAXLOSS_INLINE Vector select(IntLanes condition, Vector yes, Vector no) { return condition ? yes.lanes : no.lanes; }

JAXLOSS_INLINE Vector absolute(Vector x) { return bits<FloatLanes>(bits<IntLanes>(x.lanes) & integers(0x7fffffff)); }

// e^x within 2 ulp over the whole range, subnormal results and ±Inf and NaN included.
// x = k log 2 + r, |r| ≤ ½ log 2; a polynomial for e^r (Taylor's coefficients bent to the interval), 2^k in two factors
// so that neither overflows on the way to a subnormal or to infinity.
JAXLOSS_INLINE Vector exponential(Vector x) {
  x = at_most(at_least(x, Vector(-104.0)), Vector(89.0));
  const Vector round(12582912.0);  // 1.5 × 2^23: adding and subtracting it rounds to an integer
  const Vector k = (x * Vector(1.44269504088896341) + round) - round;
  const Vector r = (x - k * Vector(0.693359375)) - k * Vector(-2.12194440e-4);
  Vector p(1.9875691500e-4);
  p = p * r + Vector(1.3981999507e-3);
  p = p * r + Vector(8.3334519073e-3);
  p = p * r + Vector(4.1665795894e-2);
  p = p * r + Vector(1.6666665459e-1);
  p = p * r + Vector(5.0000001201e-1);
  p = p * (r * r) + r + Vector(1.0);
  const IntLanes exponent = __builtin_convertvector(k.lanes, IntLanes);
  const IntLanes half = exponent >> 1;
  const Vector first = bits<FloatLanes>((half + 127) << 23), second = bits<FloatLanes>((exponent - half + 127) << 23);
  return p * first * second;
}

// e^x − 1 for x ≤ 0 within 2 ulp: x = k log 2 + r as above, 2^k (e^r − 1) + (2^k − 1), in which nothing cancels.
JAXLOSS_INLINE Vector exponential_minus_one(Vector x) {
  x = at_least(x, Vector(-30.0));  // −1 from here on
  const Vector round(12582912.0);
  const Vector k = (x * Vector(1.44269504088896341) + round) - round;
  const Vector r = (x - k * Vector(0.693359375)) - k * Vector(-2.12194440e-4);
  Vector p(1.9875691500e-4);
  p = p * r + Vector(1.3981999507e-3);
  p = p * r + Vector(8.3334519073e-3);
  p = p * r + Vector(4.1665795894e-2);
  p = p * r + Vector(1.6666665459e-1);
  p = p * r + Vector(5.0000001201e-1);
  p = p * (r * r) + r;
  const IntLanes exponent = __builtin_convertvector(k.lanes, IntLanes);
  const Vector scale = bits<FloatLanes>((exponent + 127) << 23);
  return p * scale + (scale - Vector(1.0));
}

// log(1 + x) for x in [−½, 1] = 2 artanh(s), s = x / (2 + x), |s| ≤ 1/3: the odd series needs no range reduction, loses
// no digits of a small x, and its terms fall by at least 9.
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
  return p * t * s + (s + s);
}

// tanh x = −h / (2 + h), h = e^−2|x| − 1, of which no digits are lost however small x is.
JAXLOSS_INLINE Vector hyperbolic_tangent(Vector x) {
  const Vector size = absolute(x), h = exponential_minus_one(-(size + size));
  const Vector of_size = -h / (Vector(2.0) + h);
  return select(x < Vector(0.0), -of_size, of_size);
}

// log x within 2 ulp, of every float. x = 2^k m, ½ √2 ≤ m < √2.
JAXLOSS_INLINE Vector logarithm(Vector x) {
  const IntLanes subnormal = x < Vector(1.17549435e-38);
  const IntLanes word = bits<IntLanes>(select(subnormal, x * Vector(0x1p25), x).lanes);
  const IntLanes exponent = (word - 0x3f3504f3) >> 23;
  const Vector m = bits<FloatLanes>(word - (exponent << 23));
  const Vector k = __builtin_convertvector(exponent + (subnormal & -25), FloatLanes);
  const Vector log = k * Vector(0.693359375) + (log_one_plus(m - Vector(1.0)) + k * Vector(-2.12194440e-4));
  const Vector zero(0.0), infinity(__builtin_inf());
  const Vector of_positive = select(x < infinity, log, x);
  return select(x > zero, of_positive, select(x == zero, -infinity, Vector(__builtin_nan(""))));
}

// 16-bit floats, in integer arithmetic: every instruction set has it, and it vectorises.
JAXLOSS_INLINE FloatLanes widened(HalfwordLanes stored, bfloat16) {
  return bits<FloatLanes>(__builtin_convertvector(stored, IntLanes) << 16);
}
JAXLOSS_INLINE FloatLanes widened(HalfwordLanes stored, float16) {
  const IntLanes wide = __builtin_convertvector(stored, IntLanes);
  const IntLanes magnitude = (wide & 0x7fff) << 13;
  // A subnormal is its mantissa in units of 2^-24. (Shifting it into a subnormal float would not do: XLA's threads
  // flush those.)
  const FloatLanes subnormal = __builtin_convertvector(wide & 0x3ff, FloatLanes) * 0x1p-24f;
  const IntLanes special = magnitude >= (0x7c00 << 13);  // Inf and NaN keep their largest exponent
  const IntLanes normal = special ? (magnitude | 0x7f800000) : magnitude + (112 << 23);
  const IntLanes with_exponent = magnitude < (0x0400 << 13) ? bits<IntLanes>(subnormal) : normal;
  return bits<FloatLanes>(with_exponent | ((wide & 0x8000) << 16));
}

JAXLOSS_INLINE HalfwordLanes narrowed(FloatLanes x, bfloat16) {
  const IntLanes word = bits<IntLanes>(x);
  const IntLanes rounded = word + 0x7fff + ((word >> 16) & 1);  // to nearest, ties to even
  const IntLanes result = x == x ? rounded : (word | 0x400000);
  return __builtin_convertvector((result >> 16) & 0xffff, HalfwordLanes);
}
JAXLOSS_INLINE HalfwordLanes narrowed(FloatLanes x, float16) {
  const IntLanes word = bits<IntLanes>(x);
  const IntLanes sign = word & static_cast<int32_t>(0x80000000u);
  const IntLanes magnitude = word ^ sign;
  // Normal results: rebias the exponent and round to nearest, ties to even.
  const IntLanes normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Subnormal results: adding 0.5 lets the adder round at the right bit.
  const IntLanes subnormal = bits<IntLanes>(bits<FloatLanes>(magnitude) + 0.5f) - 0x3f000000;
  IntLanes result = magnitude < (113 << 23) ? subnormal : normal;
  result = magnitude >= 0x47800000 ? integers(0x7c00) : result;  // 65536 and above, Inf
  result = magnitude > 0x7f800000 ? integers(0x7e00) : result;   // NaN
  return __builtin_convertvector((result | ((sign >> 16) & 0x8000)) & 0xffff, HalfwordLanes);
}

// One arithmetic value per step: a vector for what computes in float, a scalar for float64.
template <class Stored>
struct Step {
  using Value = Vector;
  static constexpr int64_t width = kLanes;

  JAXLOSS_INLINE static Vector load(const Stored* from) {
    if constexpr (sizeof(Stored) == 4) {
      FloatLanes lanes;
      std::memcpy(&lanes, from, sizeof(lanes));
      return lanes;
    } else {
      HalfwordLanes lanes;
      std::memcpy(&lanes, from, sizeof(lanes));
      return widened(lanes, Stored{});
    }
  }
  JAXLOSS_INLINE static void store(Stored* to, Vector value) {
    if constexpr (sizeof(Stored) == 4) {
      std::memcpy(to, &value.lanes, sizeof(value.lanes));
    } else {
      const HalfwordLanes lanes = narrowed(value.lanes, Stored{});
      std::memcpy(to, &lanes, sizeof(lanes));
    }
  }
};

template <>
struct Step<double> {
  using Value = double;
  static constexpr int64_t width = 1;

  JAXLOSS_INLINE static double load(const double* from) { return *from; }
  JAXLOSS_INLINE static void store(double* to, double value) { *to = value; }
};

// The last step of a row holds fewer elements than lanes: the other lanes are zeros, and are not stored.
template <class Stored>
JAXLOSS_INLINE typename Step<Stored>::Value load_step(const Stored* from, int64_t count) {
  if (count == Step<Stored>::width) return Step<Stored>::load(from);
  Stored padded[Step<Stored>::width] = {};
  for (int64_t i = 0; i < count; i++) padded[i] = from[i];
  return Step<Stored>::load(padded);
}
template <class Stored>
JAXLOSS_INLINE void store_step(Stored* to, typename Step<Stored>::Value value, int64_t count) {
  if (count == Step<Stored>::width) return Step<Stored>::store(to, value);
  Stored padded[Step<Stored>::width];
  Step<Stored>::store(padded, value);
  for (int64_t i = 0; i < count; i++) to[i] = padded[i];
}

// Calls `body(index of the first element, count of elements)` for every step of a row.
template <class Stored, class Body>
JAXLOSS_INLINE void for_each_step(int64_t width, Body body) {
  constexpr int64_t step = Step<Stored>::width;
  int64_t i = 0;
  for (; i + step <= width; i += step) body(i, step);
  if (i < width) body(i, width - i);
}

JAXLOSS_INLINE float lane(Vector x, int64_t i) { return x.lanes[i]; }
JAXLOSS_INLINE double lane(double x, int64_t) { return x; }

// The sum of `body(index, count)` over the elements of a row. Vectors are added up in float over `kStepsPerSum` steps,
// then moved to a double: the sum of a long row is as accurate as that of a short one.
constexpr int64_t kStepsPerSum = 64;

template <class Stored, class Body>
JAXLOSS_INLINE double sum_over_steps(int64_t width, Body body) {
  constexpr int64_t step = Step<Stored>::width;
  using Value = typename Step<Stored>::Value;
  double total = 0;
  int64_t i = 0;
  while (i + step <= width) {
    const int64_t block = i + step * kStepsPerSum;
    Value sum(0);
    for (; i + step <= width && i < block; i += step) sum = sum + body(i, step);
    for (int64_t k = 0; k < step; k++) total += lane(sum, k);
  }
  if (i < width) {
    const Value rest = body(i, width - i);
    for (int64_t k = 0; k < width - i; k++) total += lane(rest, k);
  }
  return total;
}

}  // namespace jaxloss::JAXLOSS_ISA
