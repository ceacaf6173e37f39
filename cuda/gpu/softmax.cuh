// Exponentials of logits relative to a maximum, with the hardware's exponential of base 2.
#pragma once

#include "gpu/reduce.cuh"

namespace jaxloss::gpu {

__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// exp(x − max), for x up to max. The difference comes first: an offset common to all logits has cancelled, however
// large, before anything is rounded. (2^(x·log₂e − max·log₂e) would save an addition, and be wrong by the rounding of
// the second product, which for |max| beyond 2^16 is a factor that matters.)
template <class Real>
struct Exponentials {
  Real max;

  __device__ __forceinline__ explicit Exponentials(Real max_) : max(max_) {}
  __device__ __forceinline__ float term(float x) const { return power_of_two((x - max) * 1.44269504f); }
  __device__ __forceinline__ double term(double x) const { return exp(x - max); }

  // What a sum of these terms is multiplied by to be one of `higher`'s.
  __device__ __forceinline__ Real as_terms_of(const Exponentials& higher) const { return higher.term(max); }
};

// The maximum and the sum of exponentials of the logits seen so far.
template <class Real>
class RunningSoftmax {
 public:
  __device__ __forceinline__ RunningSoftmax() : exponentials_(no_logits<Real>().max), sum_(0) {}

  template <int count>
  __device__ __forceinline__ void add(const Real (&x)[count]) {
    Real highest = x[0];
#pragma unroll
    for (int i = 1; i < count; i++) highest = Maximum()(highest, x[i]);
    if (highest > exponentials_.max) {
      const Exponentials<Real> higher(highest);
      sum_ *= exponentials_.as_terms_of(higher);
      exponentials_ = higher;
    }
    Real sums[2] = {0, 0};  // two, for each waits for its last addition
#pragma unroll
    for (int i = 0; i < count; i++) sums[i % 2] += exponentials_.term(x[i]);
    sum_ += sums[0] + sums[1];
  }

  __device__ __forceinline__ SoftmaxSums<Real> sums() const { return {exponentials_.max, sum_}; }

 private:
  Exponentials<Real> exponentials_;
  Real sum_;
};

}  // namespace jaxloss::gpu
