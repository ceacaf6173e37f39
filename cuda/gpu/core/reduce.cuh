// Values of threads combined across a warp, part of a warp, or a block; every thread gets the result.
#pragma once

#include "maths/cross_entropy.h"

namespace jaxloss::gpu {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = ~0u;

__device__ __forceinline__ int from_lane_xor(int x, int mask) { return __shfl_xor_sync(kAllLanes, x, mask); }
__device__ __forceinline__ float from_lane_xor(float x, int mask) { return __shfl_xor_sync(kAllLanes, x, mask); }
__device__ __forceinline__ double from_lane_xor(double x, int mask) { return __shfl_xor_sync(kAllLanes, x, mask); }

struct Sum {
  template <class Real>
  __device__ __forceinline__ Real operator()(Real a, Real b) const {
    return a + b;
  }
};

// Of two numbers the larger; a NaN only if both are.
struct Maximum {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
  __device__ __forceinline__ double operator()(double a, double b) const { return fmax(a, b); }
};

// A sum of many numbers and what its additions have rounded away. Many equal terms beside a large one are all rounded
// the same way: so long a sum that is not compensated is off by half as many ulp as it has terms.
template <class Real>
class CompensatedSum {
 public:
  __device__ __forceinline__ explicit CompensatedSum(Real first = 0) : sum_(first) {}

  __device__ __forceinline__ void add(Real x) {
    const Real sum = sum_ + x, of_x = sum - sum_;
    lost_ += (sum_ - (sum - of_x)) + (x - of_x);
    sum_ = sum;
  }
  __device__ __forceinline__ void scale(Real factor) {
    sum_ *= factor;
    lost_ *= factor;
  }
  // Of an infinite sum nothing is lost that has a value.
  __device__ __forceinline__ Real value() const { return lost_ == lost_ ? sum_ + lost_ : sum_; }

 private:
  Real sum_, lost_ = 0;
};

// How the sums of parts of a row become the row's.
struct Merged {
  template <class Real>
  __device__ __forceinline__ SoftmaxSums<Real> operator()(SoftmaxSums<Real> a, SoftmaxSums<Real> b) const {
    const Real max = Maximum()(a.max, b.max);
    return {max, a.sum * exponential(a.max - max) + b.sum * exponential(b.max - max)};
  }
};

// Across each group of `lanes` neighbours, a power of two up to 32. All lanes of the warp must call it, with equal
// `lanes`.
template <class Value, class Combine>
__device__ __forceinline__ Value across_lanes(Value value, int lanes, Combine combine) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    if (mask < lanes) value = combine(value, from_lane_xor(value, mask));
  }
  return value;
}

// The maximum first, then one exponential a lane: merging two by two would take two at each of the levels, one after
// the other.
template <class Real>
__device__ __forceinline__ SoftmaxSums<Real> across_lanes(SoftmaxSums<Real> sums, int lanes, Merged) {
  const Real max = across_lanes(sums.max, lanes, Maximum());
  return {max, across_lanes(sums.sum * exponential(sums.max - max), lanes, Sum())};
}

// All `threads` of the block must call it, with what the lanes of each warp have in common.
template <int threads, class Value, class Combine>
__device__ __forceinline__ Value across_warps(Value value, Combine combine) {
  constexpr int warps = threads / kWarp;
  static_assert(warps * kWarp == threads && (warps & (warps - 1)) == 0 && warps <= kWarp);
  __shared__ Value of_warp[warps];
  __syncthreads();  // an earlier call's values have been read
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  return across_lanes(of_warp[threadIdx.x % warps], warps, combine);
}
// All `threads` of the block must call it.
template <int threads, class Value, class Combine>
__device__ __forceinline__ Value across_block(Value value, Combine combine) {
  return across_warps<threads>(across_lanes(value, kWarp, combine), combine);
}

}  // namespace jaxloss::gpu
