// The plain binary cross entropy of one float, as `maths/binary.h` defines it, in few enough instructions that 16-bit
// elements wait for memory and not for arithmetic: an H100 has time for 38 an element that is read, 57 one whose
// gradient is written too. These are 26 and 34; with functions of the CUDA library they were about 90.
#pragma once

#include "maths/binary.h"

namespace jaxloss::gpu {

// The loss is near + b |x|, near = log(1 + e^−|x|), where b is the target's share of the class that the logit speaks
// against. With t clipped, near is at least −log(1 − clip), and |x| at most log(1 − clip) − log(clip).
struct BinaryCrossEntropyOfFloat {
  static constexpr int parameter_count = 0;

  float floor, most;

  explicit BinaryCrossEntropyOfFloat(const BinaryCrossEntropy& loss)
      : floor(static_cast<float>(loss.clipped.floor)), most(static_cast<float>(loss.clipped.most)) {}

  // Products are rounded before they are added to, as in the losses with weights: a weight of 1 changes no bit.
  __device__ __forceinline__ void operator()(float logit, float target, const float*, float& value,
                                             float& derivative) const {
    const BinaryLogit<float> x(logit);
    const float near = larger_or_nan(x.softplus, floor), other = x.other(target, 1 - target);
    const float distance = other == 0 ? 0 : fminf(x.size, most);  // which is infinite without a clip
    value = __fadd_rn(near, __fmul_rn(other, distance));
    derivative = x.derivative(x.missing(), other);
  }
};

}  // namespace jaxloss::gpu
