// Binary cross entropies of one element, from its logit x: plain, weighted and focal. They are functors like those of
// `maths/elementwise.h`. The derivatives are those of the losses without a clip.
#pragma once

#include "maths/scalar.h"

namespace jaxloss {

// A logit x speaks for one of the two classes, with a probability of at least ½: for class 1 from 0 on, for class 0 up
// to −0. All that follows is in terms of these two, and so the same to the bit for x and target a, and −x and 1 − a.
template <class Value>
struct BinaryLogit {
  decltype(is_negative(Value(0))) negative;
  Value size;      // |x|
  Value decay;     // e^−|x|
  Value softplus;  // log(1 + e^−|x|), −log of the larger probability; that of the smaller one is |x| more. In log
                   // space, so that nothing underflows before its logarithm is taken.

  JAXLOSS_INLINE explicit BinaryLogit(Value logit) : BinaryLogit(logit, decay_of(absolute(logit))) {}
  JAXLOSS_INLINE BinaryLogit(Value logit, Value decay_of_size)
      : negative(is_negative(logit)),
        size(absolute(logit)),
        decay(decay_of_size),
        softplus(log_one_plus(decay_of_size)) {}

  // Of what classes 1 and 0 have, what the class has that the logit speaks for, and what the other one has.
  JAXLOSS_INLINE Value agreeing(Value one, Value zero) const { return select(negative, zero, one); }
  JAXLOSS_INLINE Value other(Value one, Value zero) const { return select(negative, one, zero); }

  // The derivative of Σ b nll: `sum` (1 − t) less the other class's b, t the larger probability, towards that class.
  // Nothing but these two is subtracted: t − b would lose the digits of a small 1 − t.
  JAXLOSS_INLINE Value derivative(Value sum_missing, Value of_other) const {
    const Value missing = sum_missing - of_other;
    return select(negative, missing, -missing);
  }
  JAXLOSS_INLINE Value missing() const { return share_of_one_plus(decay); }  // 1 − t
};

// With t clipped to [clip, 1 − clip], the two −log: the smaller is at least `floor`, and at most `most` below the
// other.
struct NllClip {
  double floor;  // −log(1 − clip)
  double most;   // log(1 − clip) − log(clip)

  explicit NllClip(double clip) : floor(-std::log1p(-clip)), most(std::log1p(-clip) - std::log(clip)) {}

  template <class Value>
  JAXLOSS_INLINE Value likely(const BinaryLogit<Value>& x) const {
    return at_least(x.softplus, Value(floor));
  }
  template <class Value>
  JAXLOSS_INLINE Value distance(const BinaryLogit<Value>& x) const {
    return at_most(x.size, Value(most));
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
    const BinaryLogit<Value> x(logit);
    const Value other = x.other(target, Value(1) - target);
    value = clipped.likely(x) + weighted(other, clipped.distance(x));
    derivative = x.derivative(x.missing(), other);
  }
};

// −u a′ log t − v (1 − a′) log(1 − t) of the smoothed target a′ = a + ε (½ − a).
template <class Value>
struct WeightedTarget {
  Value agreeing, other;        // what of a′ and 1 − a′ is of the class that the logit speaks for, and of the other one
  Value of_agreeing, of_other;  // times their weights: 0 takes a class out, whatever the logit is

  // The first parameters of a loss: u, v, ε.
  JAXLOSS_INLINE WeightedTarget(const BinaryLogit<Value>& x, Value target, const Value* parameter) {
    const Value one = smoothed(target, parameter[2]), zero = smoothed(Value(1) - target, parameter[2]);
    agreeing = x.agreeing(one, zero);
    other = x.other(one, zero);
    of_agreeing = x.agreeing(parameter[0], parameter[1]) * agreeing;
    of_other = x.other(parameter[0], parameter[1]) * other;
  }

  // Where the weights are 1, this is the loss without them to the bit.
  JAXLOSS_INLINE Value nll(Value likely, Value distance) const {
    return weighted(of_agreeing + of_other, likely) + weighted(of_other, distance);
  }
  JAXLOSS_INLINE Value derivative(const BinaryLogit<Value>& x) const {
    return x.derivative(weighted(of_agreeing + of_other, x.missing()), of_other);
  }

 private:
  JAXLOSS_INLINE static Value smoothed(Value share, Value smoothing) {
    return share + smoothing * (Value(0.5) - share);
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
    const BinaryLogit<Value> x(logit);
    const WeightedTarget<Value> targets(x, target, parameter);
    value = targets.nll(clipped.likely(x), clipped.distance(x));
    derivative = targets.derivative(x);
  }
};

// That times α q^γ, where q = a′ (1 − t) + (1 − a′) t is the probability that is missing, and α = α₁ a′ + α₀ (1 − a′).
//
// With b the target's share of the class that the logit speaks for, q = (1 − b + b e^−|x|) / (1 + e^−|x|). The
// derivative is α q^γ times (γ q′/q nll + nll′), and q′/q stays finite where q and e^−|x| underflow: for b = 1 they
// cancel. What is not finite in nll is masked by a q′ of 0, and a q of 0 by a γ of 0; what is not finite in any of
// them by weights of 0.
struct FocalBinaryCrossEntropy {
  static constexpr const char* name = "focal_binary_cross_entropy";
  static constexpr int constant_count = 1, parameter_count = 6;  // clip; u, v, ε, γ, α₁, α₀

  NllClip clipped;

  explicit FocalBinaryCrossEntropy(const double* constants) : clipped(constants[0]) {}

  template <class Value>
  JAXLOSS_INLINE void operator()(Value logit, Value target, const Value* parameter, Value& value,
                                 Value& derivative) const {
    const Value one(1), gamma = parameter[3];
    const BinaryLogit<Value> x(logit);
    const WeightedTarget<Value> targets(x, target, parameter);
    const Value nll = targets.nll(x.softplus, x.size);
    value = targets.nll(clipped.likely(x), clipped.distance(x));
    derivative = targets.derivative(x);

    const Value agreeing = targets.agreeing, other = targets.other;  // b and 1 − b
    const auto certain = other == Value(0);
    const Value mixed = other + agreeing * x.decay;
    const Value relative = select(certain, one, x.decay / mixed) / (one + x.decay);
    const Value slope = select(x.negative, agreeing - other, other - agreeing) * relative;  // q′/q
    derivative = weighted(gamma * slope, nll) + derivative;
    const Value log_q = select(certain, -x.size, logarithm(mixed)) - x.softplus;
    const Value balance =
        x.agreeing(parameter[4], parameter[5]) * agreeing + x.other(parameter[4], parameter[5]) * other;
    const Value scale = balance * exponential(weighted(gamma, log_q));
    const auto nothing = targets.of_agreeing + targets.of_other == Value(0);  // the class weighs nothing
    value = select(nothing, Value(0), weighted(scale, value));
    derivative = select(nothing, Value(0), weighted(scale, derivative));
  }
};

}  // namespace jaxloss
