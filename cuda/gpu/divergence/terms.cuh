// What every kernel of divergences makes of a student's and a teacher's number of one class.
#pragma once

#include "gpu/core/reduce.cuh"
#include "gpu/core/softmax.cuh"
#include "maths/divergence.h"
#include "rows.h"

namespace jaxloss::gpu {

// The hardware's exponential and logarithm of base 2; the logarithm takes subnormal numbers for what they are.
struct HardwareFunctions {
  __device__ __forceinline__ static float exp(float x) { return power_of_two(x * 1.44269504f); }
  __device__ __forceinline__ static double exp(double x) { return exponential(x); }
  __device__ __forceinline__ static float log(float x) { return log_of_two(x) * 0.693147181f; }
  __device__ __forceinline__ static double log(double x) { return logarithm(x); }
};

// A row's softmax from its sums of exponentials: of the largest logits, whose terms are 1, and of the others.
template <class Real>
__device__ __forceinline__ TemperedSoftmax<Real> softmax_of(Real max, Real others, Real largest, Real scale) {
  const Real none = max - max;  // NaN of an infinite maximum
  const Real sum = (others + largest) + none, rest = (others + (largest - 1)) + none;
  return {max, log_of_sum(sum, rest, is_sure(sum)), rest, scale};
}

// exp(difference · scale), of how far a logit is from another.
template <class Real>
struct TemperedTerms {
  Real factor;

  __device__ __forceinline__ explicit TemperedTerms(Real scale)
      : factor(sizeof(Real) == 4 ? scale * Real(1.44269504f) : scale) {}
  __device__ __forceinline__ float operator()(float difference) const { return power_of_two(difference * factor); }
  __device__ __forceinline__ double operator()(double difference) const { return exponential(difference * factor); }

  // Of one logit and another, with what rounding loses of their difference and of the product: what sums of a whole row
  // may be multiplied by has no error that those of its terms would average out.
  __device__ __forceinline__ float ratio(float from, float to) const {
    const Difference<float> apart(from, to);
    const float power = apart.rounded * factor, term = power_of_two(power);
    const float lost = fmaf(apart.rounded, factor, -power) + apart.lost * factor;
    return power - power == 0 ? fmaf(term, lost * 0.693147181f, term) : term;
  }
  __device__ __forceinline__ double ratio(double from, double to) const { return (*this)(from - to); }
};

template <class Real, int count>
__device__ __forceinline__ Real highest_of(const Real (&x)[count]) {
  Real highest = x[0];
#pragma unroll
  for (int i = 1; i < count; i++) highest = Maximum()(highest, x[i]);
  return highest;
}

// The terms of some logits: those that are `max`, which are 1, are counted, so that what is small beside them keeps its
// digits. Few vectors of a row have one of those, and less than 1 in all says that these have none.
template <class Real>
struct TermsOfSome {
  Real others, largest = 0;

  template <int count>
  __device__ __forceinline__ TermsOfSome(const Real (&x)[count], Real max, const TemperedTerms<Real>& terms) {
    Real sums[2] = {};
#pragma unroll
    for (int i = 0; i < count; i++) sums[i % 2] += terms(x[i] - max);
    others = sums[0] + sums[1];
  }
  __device__ __forceinline__ bool may_have_largest() const { return !(others < 1); }

  template <int count>
  __device__ __forceinline__ void count_largest(const Real (&x)[count], Real max, const TemperedTerms<Real>& terms) {
    Real sums[2] = {};
#pragma unroll
    for (int i = 0; i < count; i++) {
      const bool is_largest = x[i] == max;
      sums[i % 2] += is_largest ? Real(0) : terms(x[i] - max);
      largest += is_largest ? Real(1) : Real(0);
    }
    others = sums[0] + sums[1];
  }
};

// Probabilities from how far logits are from the largest.
template <class Real>
struct TemperedExponentials {
  Real factor, of_sum;

  __device__ __forceinline__ explicit TemperedExponentials(const TemperedSoftmax<Real>& softmax)
      : factor(softmax.scale * unit()), of_sum(softmax.log_sum * unit()) {}

  __device__ __forceinline__ float operator()(float from_max) const {
    return power_of_two(fmaf(from_max, factor, -of_sum));
  }
  __device__ __forceinline__ double operator()(double from_max) const { return exp(from_max * factor - of_sum); }

 private:
  static constexpr __device__ __forceinline__ Real unit() { return sizeof(Real) == 4 ? Real(1.4426950408889634) : 1; }
};

// Below which size a 16-bit logit may be one whose difference from its row's maximum is not exact in float: where its
// lowest bit is less than that of what is up to twice the maximum. If it is the maximum that is so small, it may be
// any. Of logits whose probability is 0 nothing is asked.
template <class Logit>
__device__ __forceinline__ float inexact_below(const TemperedSoftmax<float>& softmax) {
  constexpr float bits = std::is_same_v<Logit, bfloat16> ? 0x1p-16f : 0x1p-13f;  // of float, and not of the logit
  const float size = absolute(softmax.max);
  return size == 0 || size * softmax.scale >= 104 * bits ? 2 * bits * size : INFINITY;
}

// φ and φ′ of the classes of a row: see maths/divergence.h.
template <class Divergence, class Logit, class Teacher>
struct DivergenceTerms {
  using Real = Accumulator<Logit>;
  using Stored = typename Teacher::Stored;
  static constexpr bool of_logits = std::is_same_v<Teacher, TeacherLogits<Stored>>;

  const typename Divergence::template OfRow<Real> divergence;
  const TemperedSoftmax<Real> student, teacher;
  const TemperedExponentials<Real> of_student, of_teacher;
  const Ratio<Real> ratio;
  const Real inexact;

  __device__ __forceinline__ DivergenceTerms(Real parameter, const TemperedSoftmax<Real>& student_,
                                             const TemperedSoftmax<Real>& teacher_)
      : divergence(parameter),
        student(student_),
        teacher(teacher_),
        of_student(student_),
        of_teacher(teacher_),
        ratio(student_, teacher_),
        inexact(inexact_difference()) {}

  // d of some classes.
  template <int count>
  __device__ __forceinline__ void log_ratios(const Real (&x)[count], const Real (&y)[count], Real (&d)[count]) const {
#pragma unroll
    for (int i = 0; i < count; i++) {
      if constexpr (!of_logits) {
        // Not the hardware's logarithm, of which nothing is left near 1.
        d[i] = student.log_probability(x[i]) - logarithm(y[i]);
      } else if constexpr (narrow) {
        d[i] = ((x[i] - student.max) - (y[i] - teacher.max)) * student.scale - ratio.shift;
      } else {
        d[i] = ratio.log(x[i], y[i]);
      }
    }
    if constexpr (narrow) {
      float least = INFINITY;
#pragma unroll
      for (int i = 0; i < count; i++) least = fminf(least, fminf(absolute(x[i]), absolute(y[i])));
      if (least < inexact) {
#pragma unroll
        for (int i = 0; i < count; i++) d[i] = ratio.log(x[i], y[i]);
      }
    }
  }

  __device__ __forceinline__ void operator()(Real x, Real y, Real d, Real& p, Real& value, Real& derivative) const {
    p = of_student(x - student.max);
    const Real q = of_logits ? of_teacher(y - teacher.max) : y;
    divergence(std::bool_constant<of_logits>(), HardwareFunctions{}, d, p, q, value, derivative);
  }

 private:
  static constexpr bool narrow = of_logits && sizeof(Logit) == 2 && sizeof(Stored) == 2;

  __device__ __forceinline__ Real inexact_difference() const {
    if constexpr (narrow) return fmaxf(inexact_below<Logit>(student), inexact_below<Logit>(teacher));
    return 0;
  }
};

}  // namespace jaxloss::gpu
