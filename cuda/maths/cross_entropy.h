// The softmax and the cross entropy of one row, in the parts that every kernel shares.
//
// A row of logits x is summarised by its maximum m and s = Σ exp(x − m). The log-sum-exp is m + log s, but it is never
// formed: the loss is log s − (x_y − m), in which an offset common to all logits has already cancelled.
#pragma once

#include "maths/scalar.h"

namespace jaxloss {

template <class Real>
struct SoftmaxSums {
  Real max;
  Real sum;
};

// The summary of no logits. Finite, so that two of them combine without ∞ − ∞; no finite logit is below it.
template <class Real>
JAXLOSS_INLINE SoftmaxSums<Real> no_logits();
template <>
JAXLOSS_INLINE SoftmaxSums<float> no_logits<float>() {
  return {-3.40282347e+38f, 0.0f};
}
template <>
JAXLOSS_INLINE SoftmaxSums<double> no_logits<double>() {
  return {-1.7976931348623157e+308, 0.0};
}

// Of the sum of exponentials: whether the largest logit has more than half of the softmax, and is alone. Its softmax −
// 1 is then what its gradient is made of; where the softmax is small that would lose the digits that it keeps.
template <class Real>
JAXLOSS_INLINE bool is_sure(Real sum) {
  return sum > 0 && sum < 2;
}

// log s. Of a row whose label, or another class that is alone in it, has the largest logit, s is 1 + `rest`, and
// `apart` is true: log s is then right relative to itself, however small, which the logarithm of a rounded s would not
// be.
template <class Value, class Condition>
JAXLOSS_INLINE Value log_of_sum(Value s, Value rest, Condition apart) {
  return logarithm(s) + select(apart, (rest - (s - Value(1))) / s, Value(0));
}

// −log max(t_y, clip) = min(log s − (x_y − m), −log clip)
template <class Real>
JAXLOSS_INLINE Real negative_log_likelihood(Real log_sum, Real logit_minus_max, Real ceiling) {
  return at_most(log_sum - logit_minus_max, ceiling);
}

}  // namespace jaxloss
