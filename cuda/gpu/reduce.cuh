// Sums and softmax sums over the lanes of a warp and the warps of a block, in a fixed order: the same bits every time.
#pragma once

#include "maths/cross_entropy.h"

namespace jaxloss::gpu {

constexpr unsigned kAllLanes = 0xffffffff;

// e^x with the hardware's exp2 (2 ulp); exact on the whole range that x − max can take.
__device__ __forceinline__ float fast_exponential(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.44269504f));
  return result;
}
__device__ __forceinline__ double fast_exponential(double x) { return exp(x); }

template <class Real>
__device__ __forceinline__ SoftmaxSums<Real> combined(SoftmaxSums<Real> a, SoftmaxSums<Real> b) {
  const Real max = a.max > b.max ? a.max : b.max;
  return {max, a.sum * fast_exponential(a.max - max) + b.sum * fast_exponential(b.max - max)};
}
template <class Real>
__device__ __forceinline__ Real combined(Real a, Real b) {
  return a + b;
}

template <class Real>
__device__ __forceinline__ SoftmaxSums<Real> from_lane(SoftmaxSums<Real> x, int mask) {
  return {__shfl_xor_sync(kAllLanes, x.max, mask), __shfl_xor_sync(kAllLanes, x.sum, mask)};
}
template <class Real>
__device__ __forceinline__ Real from_lane(Real x, int mask) {
  return __shfl_xor_sync(kAllLanes, x, mask);
}

// Over each group of `kLanes` consecutive lanes; all lanes of the warp must call it, and all get their group's result.
template <int kLanes, class T>
__device__ __forceinline__ T over_lanes(T x) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) x = combined(x, from_lane(x, mask));
  return x;
}

// Over all threads of the block; `nothing` is the result of no thread. All threads get the result.
template <class T>
__device__ __forceinline__ T over_block(T x, T nothing) {
  __shared__ T of_warp[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  x = over_lanes<32>(x);
  __syncthreads();  // a former call's results have been read
  if (lane == 0) of_warp[warp] = x;
  __syncthreads();
  return over_lanes<32>(lane < warps ? of_warp[lane] : nothing);
}

}  // namespace jaxloss::gpu
