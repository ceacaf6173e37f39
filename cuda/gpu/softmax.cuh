// Exponentials of logits relative to a maximum, in one multiply-add and one base-2 exponential each.
#pragma once

#include "gpu/reduce.cuh"

namespace jaxloss::gpu {

__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// term(x) · correction() = exp(x − max).
template <class Real>
struct Exponentials;

// term(x) = 2^(x·scale − shift). The shift is max·scale, rounded: what the rounding takes off, or adds, is the same for
// every x, so `correction` gives it back and an offset common to all logits costs no accuracy. Where max·log₂e would
// overflow, neighbouring floats are so far apart that every term is 0 or 1, and a scale that is a power of two tells
// which.
template <>
struct Exponentials<float> {
  float max, scale, shift;

  __device__ __forceinline__ explicit Exponentials(float max_)
      : max(max_), scale(fabsf(max_) < 0x1p127f ? 1.44269504f : 0x1p-90f), shift(max_ * scale) {}

  __device__ __forceinline__ float term(float x) const { return power_of_two(fmaf(x, scale, -shift)); }
  __device__ __forceinline__ float correction() const { return power_of_two(-fmaf(max, scale, -shift)); }

  // What a sum of these terms is multiplied by to be one of `higher`'s.
  __device__ __forceinline__ float as_terms_of(const Exponentials& higher) const {
    return scale == higher.scale ? power_of_two(shift - higher.shift) : 0.0f;
  }
};

template <>
struct Exponentials<double> {
  double max;

  __device__ __forceinline__ explicit Exponentials(double max_) : max(max_) {}
  __device__ __forceinline__ double term(double x) const { return exp(x - max); }
  __device__ __forceinline__ double correction() const { return 1.0; }
  __device__ __forceinline__ double as_terms_of(const Exponentials& higher) const { return exp(max - higher.max); }
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

  __device__ __forceinline__ SoftmaxSums<Real> sums() const {
    return {exponentials_.max, sum_ * exponentials_.correction()};
  }

 private:
  Exponentials<Real> exponentials_;
  Real sum_;
};

}  // namespace jaxloss::gpu
