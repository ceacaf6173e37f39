// How far a student's distribution p is from a teacher's q, class by class, for every kernel on every platform.
//
// A divergence is Σ φ(p, q) over the classes of a row, with p = softmax(x · scale). With φ′ = p ∂φ/∂p, its derivative
// with respect to the student's logits x is
//
//   scale · (φ′ − p Σ φ′)
//
// so a divergence is a functor that gives φ and φ′ of one class, from both probabilities and their logarithms. (φ is
// homogeneous in p and q, so the teacher's q ∂φ/∂q is φ − φ′.) `Value` is a float, a double or a vector of floats.
#pragma once

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

// A row's softmax at a temperature of 1 / scale: its maximum and log Σ exp((x − max) · scale). The two are never added
// up: in x − max an offset common to all logits has cancelled before anything is rounded.
template <class Real>
struct TemperedSoftmax {
  Real max, log_sum, scale;

  template <class Value>
  JAXLOSS_INLINE Value log_probability(Value x) const {
    return (x - Value(max)) * Value(scale) - Value(log_sum);
  }
};

// q log(q / p), the Kullback–Leibler divergence of the student from the teacher.
struct KullbackLeibler {
  static constexpr const char* name = "kl_divergence";
  static constexpr int parameter_count = 0;
  // Whether Σ φ′ is −Σ q, so that it is known before the student is.
  static constexpr bool total_is_of_teacher = true;

  template <class Real>
  struct OfRow {
    JAXLOSS_INLINE explicit OfRow(Real) {}

    template <class Functions, class Value>
    JAXLOSS_INLINE void operator()(Functions, Value log_p, Value log_q, Value, Value q, Value& value,
                                   Value& of_student) const {
      value = weighted(q, log_q - log_p);
      of_student = -q;
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
    Real beta, rest;

    JAXLOSS_INLINE explicit OfRow(Real beta_) : beta(beta_), rest(1 - beta_) {}

    template <class Functions, class Value>
    JAXLOSS_INLINE void operator()(Functions, Value log_p, Value log_q, Value p, Value q, Value& value,
                                   Value& of_student) const {
      // m over the larger of the two, so that nothing overflows. Where both are 0 the difference is NaN, and is taken
      // out by weight; where one is, the ratio of the smaller to the larger is 0.
      const Value difference = log_q - log_p;
      const Value ratio = Functions::exp(-absolute(difference));
      const auto teacher_larger = log_q > log_p;
      const Value of_larger = select(teacher_larger, Value(beta), Value(rest));
      const Value of_smaller = select(teacher_larger, Value(rest), Value(beta));
      const Value log_mixture = Functions::log(of_larger + of_smaller * ratio);
      of_student = Value(rest) * weighted(p, select(teacher_larger, -difference, Value(0)) - log_mixture);
      value = of_student + Value(beta) * weighted(q, select(teacher_larger, Value(0), difference) - log_mixture);
    }
  };
};

template <class... Divergence>
struct DivergenceList {};

using Divergences = DivergenceList<KullbackLeibler, JensenShannon>;

}  // namespace jaxloss
