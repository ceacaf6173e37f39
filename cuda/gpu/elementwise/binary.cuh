// The plain binary cross entropy of one float, as `maths/binary.h` defines it, in few instructions, so that 16-bit
// elements wait for memory and not for arithmetic: an H100 has time for 38 an element that is read, 57 one whose
// gradient is written too, an H200 for 28 and 42. With functions of the CUDA library they were about 90.
#pragma once

#include "gpu/core/vector.cuh"
#include "gpu/elementwise/parameters.cuh"
#include "maths/binary.h"

namespace jaxloss::gpu {

// The loss is near + b |x|, near = log(1 + e^−|x|), where b is the target's share of the class that the logit speaks
// against. With t clipped, near is at least −log(1 − clip), and |x| at most log(1 − clip) − log(clip).
struct BinaryCrossEntropyOfFloat {
  static constexpr int parameter_count = 0;

  float floor, most;
  // As they are stored: a size that is below `most`, and finite. NaN, so that no vector is within it, where a clip
  // leaves so little that a rounding may matter.
  uint16_t within_bfloat16, within_float16;

  explicit BinaryCrossEntropyOfFloat(const BinaryCrossEntropy& loss)
      : floor(static_cast<float>(loss.clipped.floor)), most(static_cast<float>(loss.clipped.most)) {
    const float within = most < 1 ? NAN : 0.98f * fminf(most, 100.0f);
    within_bfloat16 = __bfloat16_as_ushort(__float2bfloat16_rn(within));
    within_float16 = __half_as_ushort(__float2half_rn(within));
  }

  __device__ __forceinline__ void operator()(float logit, float target, const float*, float& value,
                                             float& derivative) const {
    const BinaryLogit<float> x(logit);
    const float other = x.other(target, 1 - target);
    const float distance = other == 0 ? 0 : fminf(x.size, most);  // which is infinite without a clip
    write(x, other, larger_or_nan(x.softplus, floor), distance, value, derivative);
  }

  // The same to the bit, of logits that are neither clipped nor infinite.
  struct ShortForm {
    __device__ __forceinline__ void operator()(float logit, float target, const float*, float& value,
                                               float& derivative) const {
      const BinaryLogit<float> x(logit, decay_within_range(fabsf(logit)));
      write(x, x.other(target, 1 - target), x.softplus, x.size, value, derivative);
    }
  };
  static __device__ __forceinline__ ShortForm short_form() { return {}; }
  template <class Logit>
  __device__ __forceinline__ bool takes_short_form(const Packed<Logit, kPerVector<Logit>>& logits) const {
    return within(logits, Logit{std::is_same_v<Logit, bfloat16> ? within_bfloat16 : within_float16});
  }

 private:
  // Products are rounded before they are added to, as in the losses with weights: a weight of 1 changes no bit.
  static __device__ __forceinline__ void write(const BinaryLogit<float>& x, float other, float near, float distance,
                                               float& value, float& derivative) {
    value = __fadd_rn(near, __fmul_rn(other, distance));
    derivative = x.derivative(x.missing(), other);
  }
};

// Of 16 bits: what is read of longer numbers takes as long as their arithmetic.
template <class Prediction>
constexpr bool kHasShortForm<BinaryCrossEntropyOfFloat, Prediction> = sizeof(Prediction) == 2;

}  // namespace jaxloss::gpu
