// The plain binary cross entropy of one float, as `maths/binary.h` defines it, in few enough instructions that 16-bit
// elements wait for memory and not for arithmetic: an H100 has time for 38 an element that is read, 57 one whose
// gradient is written too. These are 26 and 34; with functions of the CUDA library they were about 90.
#pragma once

#include "gpu/instructions.cuh"
#include "maths/binary.h"

namespace jaxloss::gpu {

// e^−|x|, 0 where that is subnormal. The exponent of 2 is rounded, by more than the result may be for a large |x|; what
// e^−|x| is beyond the power of 2 that was taken is so near 1 that 1 + its logarithm is all of it.
__device__ __forceinline__ float exponential_of_minus_absolute(float x) {
  const float magnitude = smaller_or_nan(fabsf(x), 104.0f);  // nothing infinite, from which only a NaN would come
  const float exponent = magnitude * -1.44269504088896341f;
  const float beyond = fmaf(exponent, -0.693147180559945309f, -magnitude);
  const float power = power_of_two(exponent);
  return fmaf(power, beyond, power);
}

// The loss is near + b |x|, near = log(1 + e^−|x|), where b is the target's share of the class that the logit speaks
// against. With t clipped, near is at least −log(1 − clip), and |x| at most log(1 − clip) − log(clip).
struct BinaryCrossEntropyOfFloat {
  static constexpr int parameter_count = 0;

  float floor, most;

  explicit BinaryCrossEntropyOfFloat(const BinaryCrossEntropy& loss)
      : floor(static_cast<float>(loss.clipped.floor)),
        most(static_cast<float>(loss.clipped.ceiling - loss.clipped.floor)) {}

  __device__ __forceinline__ void operator()(float logit, float target, const float*, float& value,
                                             float& derivative) const {
    const float decay = exponential_of_minus_absolute(logit);
    const float near = larger_or_nan(log_one_plus(decay), floor);
    const bool negative = logit < 0;
    const float against = negative ? target : 1 - target;
    const float distance = against == 0 ? 0 : fminf(fabsf(logit), most);  // which is infinite without a clip
    value = fmaf(against, distance, near);
    derivative = fmaf(negative ? decay : 1.0f, reciprocal(1 + decay), -target);
  }
};

}  // namespace jaxloss::gpu
