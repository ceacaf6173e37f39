// What log-sum-exps and entropies add to the gradient of a row.
#pragma once

#include "gpu/core/reduce.cuh"

namespace jaxloss::gpu {

// What a row's log-sum-exp and entropy are multiplied by add to the derivative with respect to a scaled logit, over its
// softmax: of_lse − of_entropy · (z − max − mean), where `mean` is Σ softmax · (z − max).
template <class Real>
struct StatsWeights {
  Real of_lse, of_entropy, mean;

  __device__ __forceinline__ Real of(Real z_minus_max) const {
    // Of a masked class a number far below all whose softmax is not 0, for it is taken times 0.
    return of_lse - of_entropy * (Maximum()(z_minus_max, Real(-0x1p60)) - mean);
  }
};

}  // namespace jaxloss::gpu
