// The passes over a row that cross entropy with options is made of. Logits as the options make them, exponentials and
// slopes are in buffers of the type that is computed in, so that there is one copy of a pass for all types of logits
// that are computed alike; none is inlined, so that no pass is compiled twice.
#pragma once

#include "cpu/cross_entropy.h"
#include "maths/cross_entropy_options.h"

namespace jaxloss::JAXLOSS_ISA {

// The largest of the logits that step(i, count) makes of a row and writes to `z`.
template <class Logit, class Step>
JAXLOSS_INLINE Accumulator<Logit> max_of_made(int64_t classes, const Accumulator<Logit>* z, const Step& step) {
  const Steps<Logit> steps{classes};
  ValueOf<Logit> maxima(no_logits<Accumulator<Logit>>().max);
  for (int64_t i = 0; i < steps.whole(); i += steps.step) maxima = at_least(maxima, step(i, steps.step));
  if (steps.has_odd()) maxima = at_least(maxima, called(Step(step), steps.odd(), steps.odd_count()));
  return classes < steps.step ? row_max(z, classes) : max_of_lanes(maxima);
}

// z = x · factor, written to `z`; returns the largest.
template <class Logit>
__attribute__((noinline)) Accumulator<Logit> scaled_logits(const Logit* logits, int64_t classes,
                                                           Accumulator<Logit> factor, Accumulator<Logit>* z) {
  using Value = ValueOf<Logit>;
  const auto step = [=](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
    const Value scaled = load_step(logits + i, count) * Value(factor);
    store_step(z + i, scaled, count);
    return scaled;
  };
  return max_of_made<Logit>(classes, z, step);
}

// z = softcap · tanh(x / softcap) · factor, and d tanh(u) / du at u = x / softcap, if `slopes` is not null.
template <class Logit>
__attribute__((noinline)) Accumulator<Logit> capped_logits(const Logit* logits, int64_t classes,
                                                           const RowObjective<Accumulator<Logit>>& objective,
                                                           Accumulator<Logit>* z, Accumulator<Logit>* slopes) {
  using Value = ValueOf<Logit>;
  const auto inverse_softcap = objective.inverse_softcap, softcap = objective.softcap;
  const auto factor = objective.inverse_temperature;
  const auto step = [=](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
    const TangentAndSlope<Value> cap(load_step(logits + i, count) * Value(inverse_softcap));
    const Value capped = Value(softcap) * cap.tangent * Value(factor);
    store_step(z + i, capped, count);
    if (slopes) store_step(slopes + i, cap.slope(), count);
    return capped;
  };
  return max_of_made<Logit>(classes, z, step);
}

// The logits of the row that follows, which are fetched into the cache while exponentials keep the processor busy; null
// for none.
struct FollowingRow {
  const char* logits;
  int64_t bytes_a_logit;

  JAXLOSS_INLINE void fetch(int64_t i, int64_t count) const {
    if (!logits) return;
    for (int64_t byte = 0; byte < count * bytes_a_logit; byte += 64)
      __builtin_prefetch(logits + i * bytes_a_logit + byte);
  }
};

template <class Real>
struct OptionSums {
  ExponentialSum<Real> exponentials;
  Real dot;  // Σ exp(z − max) · (z − max)
};

// exp(z − max), kept if `kept` is not null, and their sum; of class `largest`, which has the maximum, it is 1.
template <bool with_dot, class Real>
__attribute__((noinline)) OptionSums<Real> option_sums(const Real* z, int64_t classes, Real max, int64_t largest,
                                                       Real* kept, FollowingRow following) {
  using Value = ValueOf<Real>;
  double total[1 + with_dot];
  sums_over_steps<Real>(
      classes, total,
      [=](int64_t i, int64_t count, Value(&values)[1 + with_dot]) JAXLOSS_IN_LOOP {
        const Value z_minus_max = load_step(z + i, count) - Value(max);
        const Value exponentials = exponential_of_negative(z_minus_max);
        values[0] = without(exponentials, largest, i, count);
        if constexpr (with_dot) values[1] = weighted(exponentials, z_minus_max);
      },
      [=](int64_t i, int64_t count, const auto& values) JAXLOSS_IN_LOOP {
        if (kept) store_step(kept + i, values[0], count);
        following.fetch(i, count);
      });
  if (kept && largest >= 0) kept[largest] = 1;
  return {{static_cast<Real>(total[0]), largest >= 0}, with_dot ? static_cast<Real>(total[with_dot]) : Real(0)};
}

// The target of every class, without what labels add to theirs. `Stored` is void where there are no probabilities.
template <class Real, class Stored>
struct ClassTargets {
  using Value = ValueOf<Real>;
  Real smooth, hard;
  const Real* class_weights;  // or null
  const Real* z;              // null where nothing is smoothed over masked classes, or none is masked
  const Stored* probability;

  JAXLOSS_INLINE Value probabilities(int64_t i, int64_t count) const {
    if constexpr (std::is_void_v<Stored>)
      return Value(0);
    else
      return load_step(probability + i, count);
  }
  JAXLOSS_INLINE Value masked(int64_t i, int64_t count) const {
    return z ? select(load_step(z + i, count) == Value(-__builtin_inf()), Value(1), Value(0)) : Value(0);
  }
  JAXLOSS_INLINE Value weighted_target(Value probabilities, Value masked, int64_t i, int64_t count) const {
    Value a = select(masked == Value(1), Value(0), Value(smooth));
    if constexpr (!std::is_void_v<Stored>) a = a + Value(hard) * probabilities;
    return class_weights ? a * load_step(class_weights + i, count) : a;
  }
  JAXLOSS_INLINE Value operator()(int64_t i, int64_t count) const {
    return weighted_target(probabilities(i, count), masked(i, count), i, count);
  }
  JAXLOSS_INLINE bool is_same_for_all() const { return std::is_void_v<Stored> && !class_weights && !z; }
  JAXLOSS_INLINE Real of(int64_t i) const { return lane((*this)(i, 1), 0); }
};

template <class Real>
struct TargetSums {
  Real total, loss, nll;  // of the targets, of the loss without what labels add, of the loss of probabilities alone
  bool masked;            // whether a class is, where that counts
};
template <class Real, class Stored>
__attribute__((noinline)) TargetSums<Real> target_sums(ClassTargets<Real, Stored> targets, const Real* z,
                                                       int64_t classes, Real max, Real log_sum, Real ceiling) {
  using Value = ValueOf<Real>;
  constexpr int n = std::is_void_v<Stored> ? 3 : 4;
  double total[n];
  sums_over_steps<Real>(
      classes, total,
      [=](int64_t i, int64_t count, Value(&values)[n]) JAXLOSS_IN_LOOP {
        const Value nll = Value(log_sum) - (load_step(z + i, count) - Value(max));
        const Value probabilities = targets.probabilities(i, count), masked = targets.masked(i, count);
        values[0] = targets.weighted_target(probabilities, masked, i, count);
        values[1] = weighted(values[0], at_most(nll, Value(ceiling)));
        values[2] = masked;
        if constexpr (n == 4) values[3] = weighted(probabilities, nll);
      },
      [](int64_t, int64_t, const auto&) JAXLOSS_IN_LOOP {});
  return {static_cast<Real>(total[0]), static_cast<Real>(total[1]), static_cast<Real>(n == 4 ? total[n - 1] : 0),
          total[2] > 0};
}

// The same of smoothing alone in a row without masked classes, where there are fewer cases to tell apart. Where the row
// does have one, or its numbers are so far apart that it looks so, `masked` is true and nothing else holds.
template <bool has_weights, class Real>
__attribute__((noinline)) TargetSums<Real> smoothing_sums(ClassTargets<Real, void> targets, const Real* z,
                                                          int64_t classes, Real max, Real log_sum, Real ceiling) {
  using Value = ValueOf<Real>;
  constexpr int n = 2 + has_weights;
  double total[n];
  sums_over_steps<Real>(
      classes, total,
      [=](int64_t i, int64_t count, Value(&values)[n]) JAXLOSS_IN_LOOP {
        const Value z_minus_max = load_step(z + i, count) - Value(max);
        const Value nll = at_most(Value(log_sum) - z_minus_max, Value(ceiling));
        values[0] = z_minus_max;
        values[1] = nll;
        if constexpr (has_weights) {
          values[2] = load_step(targets.class_weights + i, count);
          values[1] = values[2] * nll;
        }
      },
      [](int64_t, int64_t, const auto&) JAXLOSS_IN_LOOP {});
  const Real weights = has_weights ? static_cast<Real>(total[n - 1]) : static_cast<Real>(classes);
  return {targets.smooth * weights, targets.smooth * static_cast<Real>(total[1]), Real(0),
          total[0] == -__builtin_inf()};
}

// How many of the classes [begin, end) have a logit above a number, or as large where `or_equal`.
template <bool or_equal, class Real>
__attribute__((noinline)) int64_t count_above(const Real* z, int64_t begin, int64_t end, Real number) {
  if constexpr (std::is_same_v<Real, double>) {
    int64_t count = 0;
    for (int64_t i = begin; i < end; i++) count += z[i] > number || (or_equal && z[i] == number);
    return count;
  } else {
    const Vector least(number);
    const auto above = [&](Vector x) JAXLOSS_IN_LOOP { return or_equal ? x >= least : x > least; };
    Integers count(0);
    const Steps<Real> steps{end - begin};
    for (int64_t i = 0; i < steps.whole(); i += steps.step) count = count - above(load_step(z + begin + i, steps.step));
    if (steps.has_odd()) {
      const Integers lanes = lane_numbers();
      const Integers is_new = (lanes >= Integers(static_cast<int32_t>(steps.odd_done()))) &
                              (lanes < Integers(static_cast<int32_t>(steps.odd_count())));
      count = count - (above(load_step(z + begin + steps.odd(), steps.odd_count())) & is_new);
    }
    int32_t of_lanes[kLanes];
    std::memcpy(of_lanes, &count, sizeof(count));
    return reduced<kLanes>(of_lanes, [](int32_t a, int32_t b) JAXLOSS_IN_LOOP { return a + b; });
  }
}

// Kept exponentials times what losses and statistics multiply the softmax by.
template <class Real>
__attribute__((noinline)) void weigh_exponentials(Real* kept, const Real* z, int64_t classes, Real max, Real of_loss,
                                                  StatsWeights<Real> of_stats) {
  store_steps(kept, classes, [=](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
    const auto factor = ValueOf<Real>(of_loss) + of_stats.of(load_step(z + i, count) - ValueOf<Real>(max));
    return load_step(kept + i, count) * factor;
  });
}

// What the gradient of a row is made of: (exponentials · softmax − target) · factor · slope.
template <class Logit>
struct GradientOfRow {
  using Real = Accumulator<Logit>;
  const Real* exponentials;
  const Real* slopes;  // or null
  int64_t classes;
  Real softmax, factor;
  Logit* gradient;
};
// Where all classes but labels have the same target.
template <class Logit>
__attribute__((noinline)) void store_gradient(GradientOfRow<Logit> row, Accumulator<Logit> target) {
  using Value = ValueOf<Logit>;
  const auto softmax = row.softmax * row.factor, of_target = target * row.factor;
  const auto *exponentials = row.exponentials, *slopes = row.slopes;
  store_steps(row.gradient, row.classes, [=](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
    const Value result = load_step(exponentials + i, count) * Value(softmax) - Value(of_target);
    return slopes ? result * load_step(slopes + i, count) : result;
  });
}
template <class Logit, class Stored>
__attribute__((noinline)) void store_gradient(GradientOfRow<Logit> row,
                                              ClassTargets<Accumulator<Logit>, Stored> targets) {
  using Value = ValueOf<Logit>;
  store_steps(row.gradient, row.classes, [=](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
    const Value result =
        (load_step(row.exponentials + i, count) * Value(row.softmax) - targets(i, count)) * Value(row.factor);
    return row.slopes ? result * load_step(row.slopes + i, count) : result;
  });
}

}  // namespace jaxloss::JAXLOSS_ISA
