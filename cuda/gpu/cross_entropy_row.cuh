// The parts of a cross entropy row that every regime shares: what one thread does with the steps that fall to it.
#pragma once

#include "gpu/reduce.cuh"
#include "gpu/vector.cuh"
#include "rows.h"

namespace jaxloss::gpu {

// What is known of a row once its logits have been read.
template <class Real>
struct RowSums {
  Real max, log_sum, softmax_scale, target_sum, weight;  // softmax = exp(x − max) · softmax_scale
};

// The target of one row. `Steps<kWidth>` is what a thread holds of it for `kWidth` consecutive classes.
template <class Target>
struct RowTarget;

template <>
struct RowTarget<ClassIndices> {
  static constexpr bool kHasSums = false;  // the loss needs no pass over the classes
  int32_t index;

  template <int kWidth>
  struct Classes {
    int64_t first;
  };

  __device__ __forceinline__ RowTarget(ClassIndices target, int64_t row, int64_t) : index(target.index[row]) {}

  template <int kWidth>
  __device__ __forceinline__ Classes<kWidth> at(int64_t first) const {
    return {first};
  }
  // The target of a class, times what the softmax's is 1 for.
  template <class Real, int kWidth>
  __device__ __forceinline__ Real operator()(const Classes<kWidth>& classes, int i) const {
    return classes.first + i == index ? Real(1) : Real(0);
  }
};

template <class Stored>
struct RowTarget<ClassProbabilities<Stored>> {
  static constexpr bool kHasSums = true;
  const Stored* probability;

  template <int kWidth>
  using Classes = Step<Stored, kWidth>;

  __device__ __forceinline__ RowTarget(ClassProbabilities<Stored> target, int64_t row, int64_t classes)
      : probability(target.probability + row * classes) {}

  template <int kWidth>
  __device__ __forceinline__ Classes<kWidth> at(int64_t first) const {
    return Classes<kWidth>::kept(probability + first);
  }
  template <class Real, int kWidth>
  __device__ __forceinline__ Real operator()(const Classes<kWidth>& classes, int i) const {
    return static_cast<Real>(classes[i]);
  }
};

// Adds one step of logits to the softmax sums: one rescaling a step, not one an element.
template <int kWidth, class Logit>
__device__ __forceinline__ void add(SoftmaxSums<Accumulator<Logit>>& sums, const Step<Logit, kWidth>& x) {
  using Real = Accumulator<Logit>;
  Real max = sums.max;
#pragma unroll
  for (int i = 0; i < kWidth; i++) max = x[i] > max ? x[i] : max;
  Real sum = 0;
#pragma unroll
  for (int i = 0; i < kWidth; i++) sum += fast_exponential(x[i] - max);
  sums = {max, sums.sum * fast_exponential(sums.max - max) + sum};
}

// A thread's share of a row's loss, and of the sum of its target, where the target has a number for each class.
template <class Real>
struct TargetSums {
  Real loss, target_sum;
};
template <class Real>
__device__ __forceinline__ TargetSums<Real> combined(TargetSums<Real> a, TargetSums<Real> b) {
  return {a.loss + b.loss, a.target_sum + b.target_sum};
}
template <class Real>
__device__ __forceinline__ TargetSums<Real> from_lane(TargetSums<Real> x, int mask) {
  return {__shfl_xor_sync(kAllLanes, x.loss, mask), __shfl_xor_sync(kAllLanes, x.target_sum, mask)};
}

template <int kWidth, class Logit, class Target>
__device__ __forceinline__ void add(TargetSums<Accumulator<Logit>>& sums, const Step<Logit, kWidth>& x,
                                    const RowTarget<Target>& target,
                                    const typename RowTarget<Target>::template Classes<kWidth>& classes,
                                    Accumulator<Logit> max, Accumulator<Logit> log_sum, Accumulator<Logit> ceiling) {
  using Real = Accumulator<Logit>;
#pragma unroll
  for (int i = 0; i < kWidth; i++) {
    const Real probability = target.template operator()<Real, kWidth>(classes, i);
    sums.loss += weighted(probability, negative_log_likelihood(log_sum, x[i] - max, ceiling));
    sums.target_sum += probability;
  }
}

// The loss of a row with a class index; NaN if there is no such class.
template <class Logit>
__device__ __forceinline__ TargetSums<Accumulator<Logit>> index_sums(const Logit* logits, int32_t index,
                                                                     int64_t classes, Accumulator<Logit> max,
                                                                     Accumulator<Logit> log_sum,
                                                                     Accumulator<Logit> ceiling) {
  using Real = Accumulator<Logit>;
  if (index < 0 || index >= classes) return {static_cast<Real>(nanf("")), 0};
  return {negative_log_likelihood(log_sum, widened(logits[index]) - max, ceiling), 1};
}

// (softmax · target_sum − target) · weight for one step.
template <int kWidth, class Logit, class Target>
__device__ __forceinline__ void store_gradient(Logit* to, const Step<Logit, kWidth>& x, const RowTarget<Target>& target,
                                               const typename RowTarget<Target>::template Classes<kWidth>& classes,
                                               const RowSums<Accumulator<Logit>>& row) {
  using Real = Accumulator<Logit>;
  const bool zero = row.weight == 0 || (!RowTarget<Target>::kHasSums && row.target_sum == 0);
  const Real scale = row.softmax_scale * row.target_sum;
  Step<Logit, kWidth> gradient;
#pragma unroll
  for (int i = 0; i < kWidth; i++) {
    const Real difference =
        fast_exponential(x[i] - row.max) * scale - target.template operator()<Real, kWidth>(classes, i);
    gradient.set(i, zero ? Real(0) : difference * row.weight);
  }
  gradient.store(to);
}

template <int kWidth, class Logit>
__device__ __forceinline__ void store_zeros(Logit* to, int64_t steps, int thread, int threads) {
  Step<Logit, kWidth> zero;
#pragma unroll
  for (int i = 0; i < kWidth; i++) zero.set(i, 0);
  for (int64_t step = thread; step < steps; step += threads) zero.store(to + step * kWidth);
}

template <class Rows, class Real>
__device__ __forceinline__ void store_row(const Rows& rows, int64_t row, Real loss, Real max, Real log_sum) {
  rows.loss[row] = loss;
  if (rows.max) rows.max[row] = max;
  if (rows.log_sum) rows.log_sum[row] = log_sum;
}

}  // namespace jaxloss::gpu
