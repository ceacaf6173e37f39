// Losses of one element: value and derivative with respect to the prediction, for every kernel on every platform.
//
// To add a loss: a functor like those below, its name in `ElementwiseLosses` at the end, its formula in
// `jaxloss/formulas.py`, and the public function. `Value` is a float, a double or a vector of floats.
#pragma once

#include "maths/scalar.h"

namespace jaxloss {

// ½ (x − a)²
struct SquaredError {
  static constexpr const char* name = "mse";
  static constexpr int parameter_count = 0;

  explicit SquaredError(const double*) {}

  template <class Value>
  JAXLOSS_INLINE void operator()(Value prediction, Value target, Value& value, Value& derivative) const {
    derivative = prediction - target;
    value = Value(0.5) * derivative * derivative;
  }
};

// −a log t′ − (1 − a) log(1 − t′), t′ = σ(x) clipped to [clip, 1 − clip]; the derivative is the unclipped one, σ(x) −
// a. In log space: −log σ(x) = max(−x, 0) + log(1 + e^−|x|), so that nothing underflows before its logarithm is taken.
struct BinaryCrossEntropy {
  static constexpr const char* name = "binary_cross_entropy";
  static constexpr int parameter_count = 1;  // clip; 0 for none

  double floor;    // −log(1 − clip)
  double ceiling;  // −log(clip)

  explicit BinaryCrossEntropy(const double* parameters)
      : floor(-std::log1p(-parameters[0])), ceiling(-std::log(parameters[0])) {}

  template <class Value>
  JAXLOSS_INLINE void operator()(Value logit, Value target, Value& value, Value& derivative) const {
    const Value zero(0), one(1);
    const Value decay = exponential(-absolute(logit));
    const Value softplus = log_one_plus(decay);
    const Value if_one = clipped(at_least(-logit, zero) + softplus);  // −log t
    const Value if_zero = clipped(at_least(logit, zero) + softplus);  // −log(1 − t)
    value = weighted(target, if_one) + weighted(one - target, if_zero);
    derivative = select(logit < zero, decay, one) / (one + decay) - target;
  }

 private:
  template <class Value>
  JAXLOSS_INLINE Value clipped(Value nll) const {
    return at_most(at_least(nll, Value(floor)), Value(ceiling));
  }
};

template <class... Loss>
struct LossList {};

using ElementwiseLosses = LossList<SquaredError, BinaryCrossEntropy>;

}  // namespace jaxloss
