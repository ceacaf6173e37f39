// Binary cross entropies of one element, from its logit x: plain, weighted and focal. They are functors like those of
// `maths/elementwise.h`. The derivatives are those of the losses without a clip.
#pragma once

#include "maths/scalar.h"

namespace jaxloss {

// −log t and −log(1 − t) of t = σ(x), in log space: −log σ(x) = max(−x, 0) + log(1 + e^−|x|), so that nothing
// underflows before its logarithm is taken.
template <class Value>
struct BinaryNll {
  Value decay;     // e^−|x|
  Value softplus;  // log(1 + e^−|x|)
  Value if_one;    // −log t
  Value if_zero;   // −log(1 − t)

  JAXLOSS_INLINE explicit BinaryNll(Value logit)
      : decay(exponential(-absolute(logit))),
        softplus(log_one_plus(decay)),
        if_one(at_least(-logit, Value(0)) + softplus),
        if_zero(at_least(logit, Value(0)) + softplus) {}
};

// The value with t clipped to [clip, 1 − clip].
struct NllClip {
  double floor;    // −log(1 − clip)
  double ceiling;  // −log(clip)

  explicit NllClip(double clip) : floor(-std::log1p(-clip)), ceiling(-std::log(clip)) {}

  template <class Value>
  JAXLOSS_INLINE Value operator()(Value nll) const {
    return at_most(at_least(nll, Value(floor)), Value(ceiling));
  }
};

// −a log t − (1 − a) log(1 − t); the derivative is t − a.
struct BinaryCrossEntropy {
  static constexpr const char* name = "binary_cross_entropy";
  static constexpr int constant_count = 1, parameter_count = 0;  // clip; 0 for none

  NllClip clipped;

  explicit BinaryCrossEntropy(const double* constants) : clipped(constants[0]) {}

  template <class Value>
  JAXLOSS_INLINE void operator()(Value logit, Value target, const Value*, Value& value, Value& derivative) const {
    const Value zero(0), one(1);
    const BinaryNll<Value> nll(logit);
    value = weighted(target, clipped(nll.if_one)) + weighted(one - target, clipped(nll.if_zero));
    derivative = select(logit < zero, nll.decay, one) / (one + nll.decay) - target;
  }
};

// −u a′ log t − v (1 − a′) log(1 − t) of the smoothed target a′ = a + ε (½ − a).
template <class Value>
struct WeightedNll {
  Value if_one, if_zero;  // the weights u and v
  Value one, zero;        // a′ and 1 − a′

  // The first parameters of a loss: u, v, ε.
  JAXLOSS_INLINE WeightedNll(Value target, const Value* parameter)
      : if_one(parameter[0]),
        if_zero(parameter[1]),
        one(target + parameter[2] * (Value(0.5) - target)),
        zero(Value(1) - one) {}

  JAXLOSS_INLINE Value of(Value nll_if_one, Value nll_if_zero) const {
    return weighted(if_one, weighted(one, nll_if_one)) + weighted(if_zero, weighted(zero, nll_if_zero));
  }
  JAXLOSS_INLINE Value derivative(Value logit, Value decay) const {
    const Value scale = Value(1) / (Value(1) + decay);
    const Value larger = scale, smaller = decay * scale;  // of t and 1 − t
    const auto negative = logit < Value(0);
    return if_zero * zero * select(negative, smaller, larger) - if_one * one * select(negative, larger, smaller);
  }
};

struct WeightedBinaryCrossEntropy {
  static constexpr const char* name = "weighted_binary_cross_entropy";
  static constexpr int constant_count = 1, parameter_count = 3;  // clip; u, v, ε

  NllClip clipped;

  explicit WeightedBinaryCrossEntropy(const double* constants) : clipped(constants[0]) {}

  template <class Value>
  JAXLOSS_INLINE void operator()(Value logit, Value target, const Value* parameter, Value& value,
                                 Value& derivative) const {
    const BinaryNll<Value> nll(logit);
    const WeightedNll<Value> weights(target, parameter);
    value = weights.of(clipped(nll.if_one), clipped(nll.if_zero));
    derivative = weights.derivative(logit, nll.decay);
  }
};

// That times α q^γ, where q = a′ (1 − t) + (1 − a′) t is the probability that is missing, and α = α₁ a′ + α₀ (1 − a′).
//
// With b the target's share of the class that the logit speaks for, q = (1 − b + b e^−|x|) / (1 + e^−|x|). The
// derivative is α q^γ times (γ q′/q nll + nll′), and q′/q stays finite where q and e^−|x| underflow: for b = 1 they
// cancel. What is not finite in nll is taken out by a q′ of 0, and a q of 0 by a γ of 0.
struct FocalBinaryCrossEntropy {
  static constexpr const char* name = "focal_binary_cross_entropy";
  static constexpr int constant_count = 1, parameter_count = 6;  // clip; u, v, ε, γ, α₁, α₀

  NllClip clipped;

  explicit FocalBinaryCrossEntropy(const double* constants) : clipped(constants[0]) {}

  template <class Value>
  JAXLOSS_INLINE void operator()(Value logit, Value target, const Value* parameter, Value& value,
                                 Value& derivative) const {
    const Value zero(0), one(1), gamma = parameter[3];
    const BinaryNll<Value> nll(logit);
    const WeightedNll<Value> weights(target, parameter);
    const auto negative = logit < zero;
    const Value agreeing = select(negative, weights.zero, weights.one);  // b
    const Value other = select(negative, weights.one, weights.zero);     // 1 − b
    const auto certain = other == zero;
    const Value mixed = other + agreeing * nll.decay;
    const Value log_q = select(certain, -absolute(logit), logarithm(mixed)) - nll.softplus;
    const Value relative = select(certain, one, nll.decay / mixed) / (one + nll.decay);
    const Value slope = select(negative, agreeing - other, other - agreeing) * relative;  // q′/q
    const Value balance = parameter[4] * weights.one + parameter[5] * weights.zero;
    const Value scale = balance * exponential(weighted(gamma, log_q));
    value = weighted(scale, weights.of(clipped(nll.if_one), clipped(nll.if_zero)));
    derivative =
        scale * (weighted(gamma * slope, weights.of(nll.if_one, nll.if_zero)) + weights.derivative(logit, nll.decay));
  }
};

}  // namespace jaxloss
