// Vectors of floats for the CPU kernels: GCC's and Clang's vector types in classes, with the operators that the losses
// in `maths/` are written with. `VECTOR_BYTES` is the register width of the instruction set a file is compiled for.
//
// A vector is two registers: the steps of an exponential each wait for the one before, and two of them side by side
// keep the processor busy. (Four do little more, and leave longer ends of rows.)
//
// Everything lives in the namespace of the instruction set (`JAXLOSS_ISA`) and is always inlined: the linker must never
// pick the AVX-512 copy of a function for the baseline.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "maths/scalar.h"

namespace jaxloss::JAXLOSS_ISA {

// Of a lambda that is called in a loop over a row: as a call, it would pass its vectors through memory.
#define JAXLOSS_IN_LOOP __attribute__((always_inline))

constexpr int kRegisters = 2;
constexpr int kRegisterLanes = VECTOR_BYTES / 4;
constexpr int kLanes = kRegisters * kRegisterLanes;

using FloatRegister = float __attribute__((vector_size(VECTOR_BYTES)));
using IntRegister = int32_t __attribute__((vector_size(VECTOR_BYTES)));
using HalfwordRegister = uint16_t __attribute__((vector_size(VECTOR_BYTES / 2)));

template <class To, class From>
JAXLOSS_INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// Integers, or conditions: −1 where true, 0 where not.
struct Integers {
  IntRegister registers[kRegisters];

  Integers() = default;
  JAXLOSS_INLINE Integers(IntRegister first, IntRegister second) : registers{first, second} {}
  JAXLOSS_INLINE explicit Integers(int32_t x) : Integers{IntRegister{} + x, IntRegister{} + x} {}

#define JAXLOSS_OPERATOR(Result, op, Operand)                                          \
  JAXLOSS_INLINE friend Result operator op(Operand a, Operand b) {                     \
    return Result{a.registers[0] op b.registers[0], a.registers[1] op b.registers[1]}; \
  }
  JAXLOSS_OPERATOR(Integers, +, Integers)
  JAXLOSS_OPERATOR(Integers, -, Integers)
  JAXLOSS_OPERATOR(Integers, &, Integers)
  JAXLOSS_OPERATOR(Integers, |, Integers)
  JAXLOSS_OPERATOR(Integers, ==, Integers)
  JAXLOSS_OPERATOR(Integers, <, Integers)
  JAXLOSS_OPERATOR(Integers, >=, Integers)
  JAXLOSS_INLINE friend Integers operator<<(Integers a, int count) {
    return {a.registers[0] << count, a.registers[1] << count};
  }
  JAXLOSS_INLINE friend Integers operator>>(Integers a, int count) {
    return {a.registers[0] >> count, a.registers[1] >> count};
  }
};

struct Vector {
  FloatRegister registers[kRegisters];

  Vector() = default;
  JAXLOSS_INLINE Vector(FloatRegister first, FloatRegister second) : registers{first, second} {}
  // Less 0, for −0 plus 0 is 0: the sign says which weights are masked.
  JAXLOSS_INLINE explicit Vector(double x)
      : Vector{static_cast<float>(x) - FloatRegister{}, static_cast<float>(x) - FloatRegister{}} {}

  JAXLOSS_OPERATOR(Vector, +, Vector)
  JAXLOSS_OPERATOR(Vector, -, Vector)
  JAXLOSS_OPERATOR(Vector, *, Vector)
  JAXLOSS_OPERATOR(Vector, /, Vector)
  JAXLOSS_OPERATOR(Integers, <, Vector)
  JAXLOSS_OPERATOR(Integers, >, Vector)
  JAXLOSS_OPERATOR(Integers, >=, Vector)
  JAXLOSS_OPERATOR(Integers, ==, Vector)
#undef JAXLOSS_OPERATOR
  JAXLOSS_INLINE friend Vector operator-(Vector a) { return {-a.registers[0], -a.registers[1]}; }
};

// Whether a condition is true in any lane.
JAXLOSS_INLINE bool any(Integers condition) {
  uint64_t words[sizeof(IntRegister) / 8];
  const IntRegister both = condition.registers[0] | condition.registers[1];
  std::memcpy(words, &both, sizeof(both));
  uint64_t all = 0;
  for (const uint64_t each : words) all |= each;
  return all != 0;
}

JAXLOSS_INLINE Vector select(Integers condition, Vector yes, Vector no) {
  return {condition.registers[0] ? yes.registers[0] : no.registers[0],
          condition.registers[1] ? yes.registers[1] : no.registers[1]};
}

JAXLOSS_INLINE Integers select(Integers condition, Integers yes, Integers no) {
  return {condition.registers[0] ? yes.registers[0] : no.registers[0],
          condition.registers[1] ? yes.registers[1] : no.registers[1]};
}

// The larger and the smaller of each two numbers; where one is NaN, the second.
JAXLOSS_INLINE FloatRegister larger(FloatRegister a, FloatRegister b) {
#if VECTOR_BYTES == 64 && defined(__AVX512F__)
  return _mm512_maskz_max_ps(0xffff, a, b);  // without a mask, GCC 12 warns of its own header
#elif VECTOR_BYTES == 32 && defined(__AVX__)
  return _mm256_max_ps(a, b);
#elif VECTOR_BYTES == 16 && defined(__SSE2__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
JAXLOSS_INLINE FloatRegister smaller(FloatRegister a, FloatRegister b) {
#if VECTOR_BYTES == 64 && defined(__AVX512F__)
  return _mm512_maskz_min_ps(0xffff, a, b);
#elif VECTOR_BYTES == 32 && defined(__AVX__)
  return _mm256_min_ps(a, b);
#elif VECTOR_BYTES == 16 && defined(__SSE2__)
  return _mm_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}
using jaxloss::at_least;
using jaxloss::at_most;

// As those of `maths/scalar.h`, by one instruction where compilers make two of the choice.
JAXLOSS_INLINE Vector at_least(Vector x, Vector bound) {
  return {larger(bound.registers[0], x.registers[0]), larger(bound.registers[1], x.registers[1])};
}
JAXLOSS_INLINE Vector at_most(Vector x, Vector bound) {
  return {smaller(bound.registers[0], x.registers[0]), smaller(bound.registers[1], x.registers[1])};
}

JAXLOSS_INLINE Vector converted(Integers x) {
  return {__builtin_convertvector(x.registers[0], FloatRegister),
          __builtin_convertvector(x.registers[1], FloatRegister)};
}

// One lane; a double is a vector of one.
JAXLOSS_INLINE float lane(const Vector& x, int64_t i) { return x.registers[i / kRegisterLanes][i % kRegisterLanes]; }
JAXLOSS_INLINE double lane(double x, int64_t) { return x; }

// 0, 1, 2, …
JAXLOSS_INLINE Integers lane_numbers() {
  int32_t numbers[kLanes];
  for (int i = 0; i < kLanes; i++) numbers[i] = i;
  Integers result;
  std::memcpy(&result, numbers, sizeof(result));
  return result;
}

// All lanes made one, by halves: in a fixed order.
template <int count, class Number, class Combine>
JAXLOSS_INLINE Number reduced(Number* numbers, Combine combine) {
  if constexpr (count == 1) {
    return numbers[0];
  } else {
    for (int i = 0; i < count / 2; i++) numbers[i] = combine(numbers[i], numbers[i + count / 2]);
    return reduced<count / 2>(numbers, combine);
  }
}

// A sum of vectors in doubles.
struct WideSum {
  using Doubles = double __attribute__((vector_size(VECTOR_BYTES)));
  Doubles lanes[2] = {};

  JAXLOSS_INLINE void add(const Vector& x) {
    using Floats = float __attribute__((vector_size(VECTOR_BYTES / 2)));
    static_assert(kRegisters == 2);
    const FloatRegister sum = x.registers[0] + x.registers[1];
    Floats halves[2];
    std::memcpy(halves, &sum, sizeof(sum));
    for (int k = 0; k < 2; k++) lanes[k] = lanes[k] + __builtin_convertvector(halves[k], Doubles);
  }
  JAXLOSS_INLINE double total() const {
    const Doubles sum = lanes[0] + lanes[1];
    double numbers[kLanes / 4];
    std::memcpy(numbers, &sum, sizeof(sum));
    return reduced<kLanes / 4>(numbers, [](double a, double b) JAXLOSS_IN_LOOP { return a + b; });
  }
};
// Sums of vectors in doubles, a lane a sum.
struct LaneSums {
  using Doubles = double __attribute__((vector_size(VECTOR_BYTES)));
  using Floats = float __attribute__((vector_size(VECTOR_BYTES / 2)));
  static constexpr int kHalves = 2 * kRegisters;
  Doubles lanes[kHalves] = {};

  JAXLOSS_INLINE void add(const Vector& x) {
    Floats halves[kHalves];
    std::memcpy(halves, &x, sizeof(x));
    for (int k = 0; k < kHalves; k++) lanes[k] = lanes[k] + __builtin_convertvector(halves[k], Doubles);
  }
  JAXLOSS_INLINE Vector rounded() const {
    Floats halves[kHalves];
    for (int k = 0; k < kHalves; k++) halves[k] = __builtin_convertvector(lanes[k], Floats);
    Vector result;
    std::memcpy(&result, halves, sizeof(result));
    return result;
  }
};
JAXLOSS_INLINE float max_of_lanes(const Vector& x) {
  float numbers[kLanes];
  std::memcpy(numbers, &x, sizeof(x));
  return reduced<kLanes>(numbers, [](float a, float b) JAXLOSS_IN_LOOP { return at_least(a, b); });
}
JAXLOSS_INLINE double max_of_lanes(double x) { return x; }

// 16-bit floats, in integer arithmetic: every instruction set has it, and it vectorises.
JAXLOSS_INLINE FloatRegister widened(HalfwordRegister stored, bfloat16) {
  return bits<FloatRegister>(__builtin_convertvector(stored, IntRegister) << 16);
}
JAXLOSS_INLINE FloatRegister widened(HalfwordRegister stored, float16) {
  const IntRegister wide = __builtin_convertvector(stored, IntRegister);
  const IntRegister magnitude = (wide & 0x7fff) << 13;
  // A subnormal is its mantissa in units of 2^-24. (Shifting it into a subnormal float would not do: XLA's threads
  // flush those.)
  const FloatRegister subnormal = __builtin_convertvector(wide & 0x3ff, FloatRegister) * 0x1p-24f;
  const IntRegister special = magnitude >= (0x7c00 << 13);  // Inf and NaN keep their largest exponent
  const IntRegister normal = special ? (magnitude | 0x7f800000) : magnitude + (112 << 23);
  const IntRegister with_exponent = magnitude < (0x0400 << 13) ? bits<IntRegister>(subnormal) : normal;
  return bits<FloatRegister>(with_exponent | ((wide & 0x8000) << 16));
}

JAXLOSS_INLINE HalfwordRegister narrowed(FloatRegister x, bfloat16) {
  const IntRegister word = bits<IntRegister>(x);
  const IntRegister rounded = word + 0x7fff + ((word >> 16) & 1);  // to nearest, ties to even
  const IntRegister result = x == x ? rounded : (word | 0x400000);
  return __builtin_convertvector((result >> 16) & 0xffff, HalfwordRegister);
}
JAXLOSS_INLINE HalfwordRegister narrowed(FloatRegister x, float16) {
  const IntRegister word = bits<IntRegister>(x);
  const IntRegister sign = word & static_cast<int32_t>(0x80000000u);
  const IntRegister magnitude = word ^ sign;
  // Normal results: rebias the exponent and round to nearest, ties to even.
  const IntRegister normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Subnormal results: adding 0.5 lets the adder round at the right bit.
  const IntRegister subnormal = bits<IntRegister>(bits<FloatRegister>(magnitude) + 0.5f) - 0x3f000000;
  IntRegister result = magnitude < (113 << 23) ? subnormal : normal;
  result = magnitude >= 0x47800000 ? IntRegister{} + 0x7c00 : result;  // 65536 and above, Inf
  result = magnitude > 0x7f800000 ? IntRegister{} + 0x7e00 : result;   // NaN
  return __builtin_convertvector((result | ((sign >> 16) & 0x8000)) & 0xffff, HalfwordRegister);
}

// One register of numbers, as they are stored in memory.
template <class Stored>
JAXLOSS_INLINE FloatRegister load_register(const Stored* from) {
  if constexpr (sizeof(Stored) == 4) {
    FloatRegister stored;
    std::memcpy(&stored, from, sizeof(stored));
    return stored;
  } else {
    HalfwordRegister stored;
    std::memcpy(&stored, from, sizeof(stored));
    return widened(stored, Stored{});
  }
}
template <class Stored>
JAXLOSS_INLINE void store_register(Stored* to, FloatRegister x) {
  if constexpr (sizeof(Stored) == 4) {
    std::memcpy(to, &x, sizeof(x));
  } else {
    const HalfwordRegister stored = narrowed(x, Stored{});
    std::memcpy(to, &stored, sizeof(stored));
  }
}

}  // namespace jaxloss::JAXLOSS_ISA
