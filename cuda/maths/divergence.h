// How far a student's distribution p is from a teacher's q, class by class, for every kernel on every platform.
//
// A divergence is Σ φ(p, q) over the classes of a row, with p = softmax(x · scale). With φ′ = p ∂φ/∂p, its derivative
// with respect to the student's logits x is
//
//   scale · (φ′ − p Σ φ′)
//
// so a divergence is a functor that gives φ and φ′ of one class, from both probabilities and d = log p − log q. (φ is
// homogeneous in p and q, so the teacher's q ∂φ/∂q is φ − φ′.) `Value` is a float, a double or a vector of floats.
//
// Of close distributions φ is made of d, which is then small, for it is of second order in it: made of the logarithms
// it would be their rounding. Where d is the difference of two rounded logarithms it is not so exact, though: see
// `Ratio`.
#pragma once

#include <type_traits>

#include "maths/scalar.h"

namespace jaxloss {

// The exponential and the logarithm of `Value`. A GPU has faster ones of its own.
struct StandardFunctions {
  template <class Value>
  JAXLOSS_INLINE static Value exp(Value x) {
    return exponential(x);
  }
  template <class Value>
  JAXLOSS_INLINE static Value log(Value x) {
    return logarithm(x);
  }
};

// A row's softmax at a temperature of 1 / scale: its maximum, log Σ exp((x − max) · scale), and that sum without the 1
// of one of the largest logits. The first two are never added up: in x − max an offset common to all logits has
// cancelled before anything is rounded.
template <class Real>
struct TemperedSoftmax {
  Real max, log_sum, rest, scale;

  template <class Value>
  JAXLOSS_INLINE Value log_probability(Value x) const {
    return (x - Value(max)) * Value(scale) - Value(log_sum);
  }
};

// The difference of the logarithms of the sums, right relative to itself and to what the sums are. Each logarithm is
// rounded as a number of up to that of the number of classes; where distributions are close, their difference would be
// ten times as far off, and what it is off by comes squared in the divergence.
template <class Real>
JAXLOSS_INLINE Real difference_of_log_sums(const TemperedSoftmax<Real>& student, const TemperedSoftmax<Real>& teacher) {
  const bool less = student.rest < teacher.rest;
  const Real lower = less ? student.rest : teacher.rest, higher = less ? teacher.rest : student.rest;
  const Real more = (higher - lower) / (1 + lower);
  if (!(more <= 1)) return student.log_sum - teacher.log_sum;
  return less ? -log_one_plus(more) : log_one_plus(more);
}

// x − y, and what its rounding lost: together they are exact. Nothing is lost of an infinite one.
template <class Value>
struct Difference {
  Value rounded, lost;

  JAXLOSS_INLINE Difference(Value x, Value y) : rounded(x - y) {
    const Value minus_y = rounded - x;
    lost = select(rounded - rounded == Value(0), (x - (rounded - minus_y)) - (y + minus_y), Value(0));
  }
};

// d of the classes of a row, from the exact difference of the logits, of which that of the maxima is subtracted: what
// is left is small where distributions are close, and only then rounded.
template <class Real>
struct Ratio {
  Difference<Real> between;
  Real scale, shift;

  JAXLOSS_INLINE Ratio(const TemperedSoftmax<Real>& student, const TemperedSoftmax<Real>& teacher)
      : between(student.max, teacher.max), scale(student.scale), shift(difference_of_log_sums(student, teacher)) {}

  template <class Value>
  JAXLOSS_INLINE Value log(Value x, Value y) const {
    const Difference<Value> logits(x, y);
    const Value difference = (logits.rounded - Value(between.rounded)) + (logits.lost - Value(between.lost));
    return difference * Value(scale) - Value(shift);
  }
};

// Below so much of |d| a series is more exact than the difference that it is of.
template <class Real>
constexpr double kClose = sizeof(Real) == 8 ? 1.0 / 512 : 1.0 / 8;

// q log(q / p), the Kullback–Leibler divergence of the student from the teacher.
struct KullbackLeibler {
  static constexpr const char* name = "kl_divergence";
  static constexpr int parameter_count = 0;
  // Whether Σ φ′ is known before the student is: −Σ q of probabilities. For a teacher's logits, φ′ has p added, which
  // changes no derivative: it is p − q, and its sum is 0. (The statistic of the row is −1, that of −q.)
  static constexpr bool total_is_of_teacher = true;

  template <class Real>
  struct OfRow {
    JAXLOSS_INLINE explicit OfRow(Real) {}

    // Of teachers that are given as logits, both distributions sum to 1, and Σ q log(q / p) = Σ q (e^d − 1 − d), in
    // which no term is negative.
    template <bool normalised, class Functions, class Value>
    JAXLOSS_INLINE void operator()(std::bool_constant<normalised>, Functions, Value d, Value p, Value q, Value& value,
                                   Value& of_student) const {
      value = -weighted(q, d);
      if constexpr (!normalised) {
        of_student = -q;
      } else {
        // p and q are as exact as their logarithms. For float, the coefficients are those whose error up to `close`,
        // relative to (e^d − 1 − d) / d², is least, 8e-7; for double they are Taylor's.
        constexpr bool is_float = sizeof(Real) != 8;
        constexpr double close = is_float ? 0.5 : kClose<Real>;
        Value series(is_float ? 0x1.6cc3a8p-10 : 1.0 / 720);
        series = series * d + Value(is_float ? 0x1.1319d0p-7 : 1.0 / 120);
        series = series * d + Value(is_float ? 0x1.555708p-5 : 1.0 / 24);
        series = series * d + Value(is_float ? 0x1.55534ep-3 : 1.0 / 6);
        series = series * d + Value(is_float ? 0x1.fffffep-2 : 0.5);
        const auto is_close = absolute(d) < Value(close);
        const Value second_order = q * (d * d) * series;
        of_student = select(is_close, q * d + second_order, p - q);
        value = select(is_close, second_order, (p - q) + value);
      }
    }
  };
};

// β q log(q / m) + (1 − β) p log(p / m) with m = β q + (1 − β) p, the generalised Jensen–Shannon divergence. φ is not
// negative in any class, so nothing cancels in the sum: close distributions have a small divergence, not a noisy one.
struct JensenShannon {
  static constexpr const char* name = "jensen_shannon";
  static constexpr int parameter_count = 1;  // β
  static constexpr bool total_is_of_teacher = false;

  template <class Real>
  struct OfRow {
    Real beta, rest, of_close[5];

    // With a = 1 − β and u = e^d − 1, φ / q = a (1 + u) log(1 + u) − (1 + a u) log(1 + a u), of which both linear terms
    // are a u. The series of the rest is a β u² (1/2 − (1 + a) u/6 + (1 + a + a²) u²/12 − … u³/20 + … u⁴/30 …).
    JAXLOSS_INLINE explicit OfRow(Real beta_) : beta(beta_), rest(Real(1) - beta_) {
      const Real one(1), both = beta * rest, two = one + rest, three = one + rest * two, four = one + rest * three,
                         five = one + rest * four;
      of_close[0] = both / Real(2);
      of_close[1] = -both * two / Real(6);
      of_close[2] = both * three / Real(12);
      of_close[3] = -both * four / Real(20);
      of_close[4] = both * five / Real(30);
    }

    template <class Normalised, class Functions, class Value>
    JAXLOSS_INLINE void operator()(Normalised, Functions, Value d, Value p, Value q, Value& value,
                                   Value& of_student) const {
      // m over the larger of the two, so that nothing overflows. Where both are 0 the difference is NaN, and is taken
      // out by weight; where one is, the ratio of the smaller to the larger is 0.
      const Value ratio = Functions::exp(-absolute(d));
      const auto teacher_larger = d < Value(0);
      const Value of_larger = select(teacher_larger, Value(beta), Value(rest));
      const Value of_smaller = select(teacher_larger, Value(rest), Value(beta));
      const Value log_mixture = Functions::log(of_larger + of_smaller * ratio);
      of_student = Value(rest) * weighted(p, select(teacher_larger, d, Value(0)) - log_mixture);
      value = of_student + Value(beta) * weighted(q, select(teacher_larger, Value(0), -d) - log_mixture);

      const Value u = d + d * d * (Value(0.5) + d * (Value(1.0 / 6) + d * Value(1.0 / 24)));
      Value series(of_close[4]);
      for (int k = 3; k >= 0; k--) series = series * u + Value(of_close[k]);
      value = select(absolute(d) < Value(kClose<Real>), q * (u * u) * series, value);
    }
  };
};

template <class... Divergence>
struct DivergenceList {};

using Divergences = DivergenceList<KullbackLeibler, JensenShannon>;

}  // namespace jaxloss
