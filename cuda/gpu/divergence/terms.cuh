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
  __device__ __forceinline__ static float log(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y * 0.693147181f;
  }
  __device__ __forceinline__ static double log(double x) { return logarithm(x); }
};

// A row's softmax from its sums of exponentials: of the largest logits, whose terms are 1, and of the others.
template <class Real>
__device__ __forceinline__ TemperedSoftmax<Real> softmax_of(Real max, Real others, Real largest, Real scale) {
  const Real sum = (others + largest) + (max - max);  // NaN of an infinite maximum
  return {max, log_of_sum(sum, others + (largest - 1), is_sure(sum)), scale};
}

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

  __device__ __forceinline__ DivergenceTerms(Real parameter, const TemperedSoftmax<Real>& student_,
                                             const TemperedSoftmax<Real>& teacher_)
      : divergence(parameter),
        student(student_),
        teacher(teacher_),
        of_student(student_),
        of_teacher(teacher_),
        ratio(student_, teacher_) {}

  __device__ __forceinline__ void operator()(Real x, Real y, Real& p, Real& value, Real& derivative) const {
    p = of_student(x - student.max);
    // Not the hardware's logarithm, of which nothing is left near 1.
    const Real q = of_logits ? of_teacher(y - teacher.max) : y;
    const Real d = of_logits ? log_ratio(x, y) : student.log_probability(x) - logarithm(y);
    divergence(std::bool_constant<of_logits>(), HardwareFunctions{}, d, p, q, value, derivative);
  }

 private:
  // Differences of 16-bit numbers from their row's maximum are exact, or so large that the probability is 0.
  __device__ __forceinline__ Real log_ratio(Real x, Real y) const {
    if constexpr (sizeof(Logit) > 2 || sizeof(Stored) > 2) return ratio.log(x, y);
    return ((x - student.max) - (y - teacher.max)) * student.scale - ratio.shift;
  }
};

}  // namespace jaxloss::gpu
