// Losses of one element: value and derivative with respect to the prediction, for every kernel on every platform.
//
// To add a loss: a functor like those below, its name in the list of its family at the end, its formula in
// `jaxloss/formulas/`, and the public function. `Value` is a float, a double or a vector of floats. A functor is made
// with constants, which are compiled into a call, and called with as many parameters as it counts, which are operands.
#pragma once

#include <cmath>
#include <type_traits>

#include "maths/binary.h"
#include "maths/scalar.h"

namespace jaxloss {

// ½ (x − a)²
struct SquaredError {
  static constexpr const char* name = "mse";
  static constexpr int constant_count = 0, parameter_count = 0;

  explicit SquaredError(const double*) {}

  template <class Value>
  JAXLOSS_INLINE void operator()(Value prediction, Value target, const Value*, Value& value, Value& derivative) const {
    derivative = prediction - target;
    value = Value(0.5) * derivative * derivative;
  }
};

// |x − a|; the derivative is 0 where x = a.
struct AbsoluteError {
  static constexpr const char* name = "mae";
  static constexpr int constant_count = 0, parameter_count = 0;

  explicit AbsoluteError(const double*) {}

  template <class Value>
  JAXLOSS_INLINE void operator()(Value prediction, Value target, const Value*, Value& value, Value& derivative) const {
    const Value zero(0), one(1), error = prediction - target;
    value = absolute(error);
    derivative = select(error < zero, -one, select(error > zero, one, error));
  }
};

// ½ e² up to |e| = δ, then δ (|e| − ½ δ), e = x − a.
struct Huber {
  static constexpr const char* name = "huber";
  static constexpr int constant_count = 0, parameter_count = 1;  // δ

  explicit Huber(const double*) {}

  template <class Value>
  JAXLOSS_INLINE void operator()(Value prediction, Value target, const Value* parameter, Value& value,
                                 Value& derivative) const {
    const Value delta = parameter[0], error = prediction - target, magnitude = absolute(error);
    const Value quadratic = at_most(magnitude, delta);
    value = quadratic * (magnitude - Value(0.5) * quadratic);
    derivative = at_most(at_least(error, -delta), delta);
  }
};

// cosh x − 1 of |x| ≤ 1, by its series.
template <int terms, class Value>
JAXLOSS_INLINE Value cosh_minus_one(Value x) {
  const Value square = x * x, first = Value(0.5) * square;
  Value others(0);  // over the first term
  for (int k = 2 * terms; k > 2; k -= 2) others = square * Value(1.0 / (k * (k - 1))) * (Value(1) + others);
  return first + first * others;
}

// log cosh e, e = x − a; the derivative is tanh e. Of a small e as log(1 + (cosh e − 1)), of a large one as
// |e| + log(1 + e^−2|e|) − log 2: relative to itself right for both.
struct LogCosh {
  static constexpr const char* name = "log_cosh";
  static constexpr int constant_count = 0, parameter_count = 0;

  explicit LogCosh(const double*) {}

  template <class Value>
  JAXLOSS_INLINE void operator()(Value prediction, Value target, const Value*, Value& value, Value& derivative) const {
    const Value zero(0), one(1), two(2), error = prediction - target, magnitude = absolute(error);
    const Value h = exponential_minus_one(-magnitude), decay = (one + h) * (one + h);
    const auto small = magnitude < one;
    constexpr int terms = std::is_same_v<Value, double> ? 10 : 6;
    value = log_one_plus(select(small, cosh_minus_one<terms>(magnitude), decay)) +
            select(small, zero, magnitude - Value(0.693147180559945309));
    const Value tanh = -h * (two + h) / (one + decay);
    derivative = select(error < zero, -tanh, tanh);
  }
};

// q (a − x) of a prediction below the target, (1 − q) (x − a) of one above; the derivative is 0 where x = a.
struct Quantile {
  static constexpr const char* name = "quantile";
  static constexpr int constant_count = 0, parameter_count = 1;  // q

  explicit Quantile(const double*) {}

  template <class Value>
  JAXLOSS_INLINE void operator()(Value prediction, Value target, const Value* parameter, Value& value,
                                 Value& derivative) const {
    const Value zero(0), error = prediction - target, below = -parameter[0], above = Value(1) - parameter[0];
    value = select(error < zero, below, above) * error;
    derivative = select(error < zero, below, select(error > zero, above, error));
  }
};

// e^x − a x, of the logarithm x of a rate and a count a; the derivative is e^x − a.
struct PoissonNll {
  static constexpr const char* name = "poisson_nll";
  static constexpr int constant_count = 0, parameter_count = 0;

  explicit PoissonNll(const double*) {}

  template <class Value>
  JAXLOSS_INLINE void operator()(Value prediction, Value target, const Value*, Value& value, Value& derivative) const {
    const Value rate = exponential(prediction);
    value = rate - weighted(target, prediction);
    derivative = rate - target;
  }
};

// ½ (log v + (x − a)²/v), of a variance v; the derivative is (x − a)/v. Both are NaN where v is not above 0.
struct GaussianNll {
  static constexpr const char* name = "gaussian_nll";
  static constexpr int constant_count = 0, parameter_count = 1;  // v

  explicit GaussianNll(const double*) {}

  template <class Value>
  JAXLOSS_INLINE void operator()(Value prediction, Value target, const Value* parameter, Value& value,
                                 Value& derivative) const {
    const Value variance = select(parameter[0] > Value(0), parameter[0], Value(NAN)), error = prediction - target;
    derivative = error / variance;
    value = Value(0.5) * (logarithm(variance) + error * derivative);
  }
};

template <class... Loss>
struct LossList {};

template <class... A, class... B>
LossList<A..., B...> both(LossList<A...>, LossList<B...>);

using ErrorLosses = LossList<SquaredError, AbsoluteError, Huber, LogCosh, Quantile, PoissonNll, GaussianNll>;
using BinaryLosses = LossList<BinaryCrossEntropy, WeightedBinaryCrossEntropy, FocalBinaryCrossEntropy>;
using ElementwiseLosses = decltype(both(ErrorLosses{}, BinaryLosses{}));

}  // namespace jaxloss
