// Cross entropy on the CPU: a row at a time, three passes over a row that stays in the cache: its maximum, its
// exponentials and their sum, its gradient. Exponentials are most of the work, so that they are kept for the gradient
// where there is a place for them.
#pragma once

#include "cpu/buffer.h"
#include "cpu/cross_entropy_narrow.h"
#include "cpu/row_weights.h"
#include "cpu/steps.h"
#include "maths/cross_entropy.h"
#include "rows.h"

namespace jaxloss::JAXLOSS_ISA {

template <class Logit>
JAXLOSS_INLINE Accumulator<Logit> row_max(const Logit* logits, int64_t classes) {
  using Value = ValueOf<Logit>;
  auto max = no_logits<Accumulator<Logit>>().max;
  if (classes < Step<Logit>::width) {
    for (int64_t i = 0; i < classes; i++) max = at_least(max, number(logits + i));
    return max;
  }
  Value maxima(max);
  for_each_step<Logit>(classes, [&](int64_t i, int64_t count)
                                    JAXLOSS_IN_LOOP { maxima = at_least(maxima, load_step(logits + i, count)); });
  return max_of_lanes(maxima);
}

// The least and the largest logit; NaNs are passed over.
template <class Real>
struct Range {
  Real min, max;
};
template <class Logit>
JAXLOSS_INLINE Range<Accumulator<Logit>> row_range(const Logit* logits, int64_t classes) {
  using Value = ValueOf<Logit>;
  const auto none = no_logits<Accumulator<Logit>>().max;
  if (classes < Step<Logit>::width) {
    Range<Accumulator<Logit>> range{-none, none};
    for (int64_t i = 0; i < classes; i++) {
      range = {at_most(range.min, number(logits + i)), at_least(range.max, number(logits + i))};
    }
    return range;
  }
  Value minima(-none), maxima(none);
  for_each_step<Logit>(classes, [&](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
    const Value x = load_step(logits + i, count);
    minima = at_most(minima, x);
    maxima = at_least(maxima, x);
  });
  return {-max_of_lanes(-minima), max_of_lanes(maxima)};
}

// The first class that has the number, −1 if none has.
template <class Stored>
__attribute__((noinline)) int64_t first_equal(const Stored* numbers, int64_t classes, Accumulator<Stored> number_) {
  int64_t i = 0;
  if constexpr (!std::is_same_v<Stored, double>) {
    const Vector wanted(number_);
    const auto equal = [&](int64_t step) JAXLOSS_IN_LOOP { return Step<Stored>::load(numbers + step) == wanted; };
    constexpr int64_t block = kLanes * kStepsPerSum;
    for (; i + block <= classes; i += block) {
      Integers found = equal(i);
      for (int64_t k = kLanes; k < block; k += kLanes) found = found | equal(i + k);
      if (any(found)) break;
    }
    while (i + kLanes <= classes && !any(equal(i))) i += kLanes;
  }
  while (i < classes && number(numbers + i) != number_) i++;
  return i < classes ? i : -1;
}

// exp(x − max) of a row: computed where they are needed, or kept.
template <class Logit>
struct ComputedExponentials {
  using Value = ValueOf<Logit>;
  const Logit* logits;
  Accumulator<Logit> max;

  JAXLOSS_INLINE Value load(int64_t i, int64_t count) const {
    return exponential_of_negative(load_step(logits + i, count) - Value(max));
  }
};
template <class Logit>
struct KeptExponentials {
  const Accumulator<Logit>* kept;

  JAXLOSS_INLINE ValueOf<Logit> load(int64_t i, int64_t count) const { return load_step(kept + i, count); }
};

// Without the number of class `excluded`, if it is one of the step's.
template <class Value>
JAXLOSS_INLINE Value without(Value values, int64_t excluded, int64_t i, int64_t count) {
  const auto lane = static_cast<uint64_t>(excluded - i);
  return lane < static_cast<uint64_t>(count) ? without_lane(values, static_cast<int64_t>(lane)) : values;
}

// An exponential of a row: 1 of the largest logit, which is counted, else what is added up.
template <class Value>
struct Exponential {
  Value below_one, is_one;

  JAXLOSS_INLINE Exponential(Value exponential, Value x_minus_max)
      : below_one(select(x_minus_max == Value(0), Value(0), exponential)),
        is_one(select(x_minus_max == Value(0), Value(1), Value(0))) {}
};

// The sum of the exponentials of a row: 1 + `rest` if `apart`, for the label or one of the largest logits has 1.
template <class Real>
struct ExponentialSum {
  Real rest;
  bool apart;

  JAXLOSS_INLINE static ExponentialSum of(double below_one, double ones) {
    return {static_cast<Real>(ones > 0 ? below_one + (ones - 1) : below_one), ones > 0};
  }
  JAXLOSS_INLINE Real whole() const { return apart ? 1 + rest : rest; }
  JAXLOSS_INLINE Real log() const { return log_of_sum(whole(), rest, apart); }
};

// `exponential(x − max)` added up over a row.
template <class Logit, class Function>
JAXLOSS_INLINE ExponentialSum<Accumulator<Logit>> sum_of_exponentials(const Logit* logits, int64_t classes,
                                                                      Accumulator<Logit> max, Function exponential) {
  using Value = ValueOf<Logit>;
  double total[2];
  sums_over_steps<Logit>(
      classes, total,
      [&](int64_t i, int64_t count, Value(&values)[2]) JAXLOSS_IN_LOOP {
        const Value x_minus_max = load_step(logits + i, count) - Value(max);
        const Exponential<Value> split(exponential(x_minus_max), x_minus_max);
        values[0] = split.below_one;
        values[1] = split.is_one;
      },
      [](int64_t, int64_t, const auto&) JAXLOSS_IN_LOOP {});
  return ExponentialSum<Accumulator<Logit>>::of(total[0], total[1]);
}

// What is added up over a row.
template <class Real>
struct RowSums {
  Real min;  // of the logits; of rows of class indices, where it is not asked for, their maximum
  Real max;
  ExponentialSum<Real> exponentials;
  Real target;     // of the target t: 1 for a class index, 0 for one that is out of range
  Real below_max;  // of t · (max − x)
};

// `store(i, count, exponentials)` may keep them; that of a label that has the largest logit is 0.
template <class Logit, class Store>
JAXLOSS_INLINE RowSums<Accumulator<Logit>> row_sums(ClassIndices target, int64_t row, const Logit* logits,
                                                    int64_t classes, Store store) {
  using Real = Accumulator<Logit>;
  const ComputedExponentials<Logit> exponentials{logits, row_max(logits, classes)};
  const int32_t index = target.index[row];
  const bool valid = index >= 0 && index < classes;
  const Real below_max = valid ? exponentials.max - number(logits + index) : Real(0);  // before anything is stored
  const int64_t excluded = valid && below_max == 0 ? index : -1;
  double total[1];
  sums_over_steps<Logit>(
      classes, total,
      [&](int64_t i, int64_t count, ValueOf<Logit>(&value)[1])
          JAXLOSS_IN_LOOP { value[0] = without(exponentials.load(i, count), excluded, i, count); },
      [&](int64_t i, int64_t count, const auto& value) JAXLOSS_IN_LOOP { store(i, count, value[0]); });
  const ExponentialSum<Real> sum{static_cast<Real>(total[0]), excluded >= 0};
  return {exponentials.max, exponentials.max, sum, Real(valid), below_max};
}
template <class Logit, class Stored, class Store>
JAXLOSS_INLINE RowSums<Accumulator<Logit>> row_sums(ClassProbabilities<Stored> target, int64_t row, const Logit* logits,
                                                    int64_t classes, Store store) {
  using Real = Accumulator<Logit>;
  using Value = ValueOf<Logit>;
  const Stored* probability = target.probability + row * classes;
  const auto [min, max] = row_range(logits, classes);
  const Value largest(max);
  double total[4];
  sums_over_steps<Logit>(
      classes, total,
      [&](int64_t i, int64_t count, Value(&values)[4]) JAXLOSS_IN_LOOP {
        const Value x_minus_max = load_step(logits + i, count) - largest;
        const Exponential<Value> exponential(exponential_of_negative(x_minus_max), x_minus_max);
        values[0] = exponential.below_one;
        values[1] = exponential.is_one;
        values[2] = load_step(probability + i, count);
        values[3] = weighted(values[2], -x_minus_max);
      },
      [&](int64_t i, int64_t count, const auto& values) JAXLOSS_IN_LOOP { store(i, count, values[0] + values[1]); });
  const auto sum = ExponentialSum<Real>::of(total[0], total[1]);
  return {min, max, sum, static_cast<Real>(total[2]), static_cast<Real>(total[3])};
}

template <class Logit>
JAXLOSS_INLINE auto row_loss(ClassIndices, int64_t, const Logit*, int64_t, RowSums<Accumulator<Logit>> sums,
                             Accumulator<Logit> log_sum, Accumulator<Logit> ceiling) {
  return sums.target == 0 ? static_cast<Accumulator<Logit>>(__builtin_nan(""))
                          : negative_log_likelihood(log_sum, -sums.below_max, ceiling);
}
template <class Logit, class Stored>
JAXLOSS_INLINE auto row_loss(ClassProbabilities<Stored> target, int64_t row, const Logit* logits, int64_t classes,
                             RowSums<Accumulator<Logit>> sums, Accumulator<Logit> log_sum, Accumulator<Logit> ceiling) {
  using Real = Accumulator<Logit>;
  using Value = ValueOf<Logit>;
  const Stored* probability = target.probability + row * classes;
  if (is_finite(ceiling) && !(log_sum + (sums.max - sums.min) <= ceiling)) {  // else no class is clipped
    return static_cast<Real>(sum_over_steps<Logit>(classes, [&](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
      const Value x_minus_max = load_step(logits + i, count) - Value(sums.max);
      const Value nll = negative_log_likelihood(Value(log_sum), x_minus_max, Value(ceiling));
      return weighted(load_step(probability + i, count), nll);
    }));
  }
  if (is_finite(log_sum)) return log_sum * sums.target + sums.below_max;
  // A row without a softmax, also if all its classes are masked, has a loss only where no class has a probability.
  return static_cast<Real>(sum_over_steps<Logit>(classes, [&](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
    return weighted(load_step(probability + i, count), Value(__builtin_nan("")));
  }));
}

// What the gradient of a row needs besides its exponentials and target.
template <class Real>
struct RowScale {
  Real softmax, target_sum, weight;  // the softmax is exp(x − max) · softmax
  // A class whose exponential does not tell its gradient: the label, or the largest logit of a sure row; −1 for none.
  int64_t apart;
  Real missing;  // its softmax − 1
};

// gradient = (softmax · target_sum − target) · weight
template <class Logit, class Exponentials>
JAXLOSS_INLINE void row_gradient(ClassIndices, int64_t, Exponentials exponentials, int64_t classes,
                                 RowScale<Accumulator<Logit>> scale, Logit* gradient) {
  using Value = ValueOf<Logit>;
  if (scale.weight == 0 || scale.target_sum == 0) {
    std::memset(gradient, 0, classes * sizeof(Logit));
    return;
  }
  store_steps(gradient, classes, [&](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
    return exponentials.load(i, count) * Value(scale.softmax * scale.weight);
  });
  if (scale.apart >= 0) store_step(gradient + scale.apart, Value(scale.missing * scale.weight), 1);
}
template <class Logit, class Exponentials, class Stored>
JAXLOSS_INLINE void row_gradient(ClassProbabilities<Stored> target, int64_t row, Exponentials exponentials,
                                 int64_t classes, RowScale<Accumulator<Logit>> scale, Logit* gradient) {
  using Value = ValueOf<Logit>;
  if (scale.weight == 0) {
    std::memset(gradient, 0, classes * sizeof(Logit));
    return;
  }
  const Stored* probability = target.probability + row * classes;
  store_steps(gradient, classes, [&](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
    const Value softmax = exponentials.load(i, count) * Value(scale.softmax * scale.target_sum);
    return (softmax - load_step(probability + i, count)) * Value(scale.weight);
  });
  if (scale.apart >= 0) {
    const Value a = load_step(probability + scale.apart, 1), total(scale.target_sum);
    store_step(gradient + scale.apart, (total * Value(scale.missing) + (total - a)) * Value(scale.weight), 1);
  }
}

// The exponentials of float32 and float64 are kept in the memory of the gradient, those of 16-bit logits apart.
template <class Logit>
constexpr bool in_gradient = std::is_same_v<Logit, Accumulator<Logit>>;

// exp(x − max) / s − 1, in which nothing cancels.
template <class Real>
JAXLOSS_INLINE Real probability_less_one(Real x_minus_max, Real log_sum) {
  return lane(exponential_minus_one(ValueOf<Real>(x_minus_max - log_sum)), 0);
}

// One row that is not masked. `buffer` has room for its exponentials where that is not in the gradient.
template <class Logit, class Target>
JAXLOSS_INLINE void cross_entropy_row(const CrossEntropyRows<Logit, Target>& rows, int64_t row,
                                      Accumulator<Logit> weight, Accumulator<Logit>* buffer) {
  using Real = Accumulator<Logit>;
  constexpr bool by_index = std::is_same_v<Target, ClassIndices>;
  const int64_t classes = rows.classes;
  const Logit* logits = rows.logits + row * classes;
  Logit* gradient = rows.gradient ? rows.gradient + row * classes : nullptr;
  // The loss of clipped probabilities takes a pass of its own over the logits, once the sum is known.
  const bool overwritten = static_cast<const void*>(gradient) == logits && !by_index && is_finite(rows.ceiling);
  Real* kept = nullptr;
  if constexpr (in_gradient<Logit>) {
    if (!overwritten) kept = gradient;
  } else {
    if (gradient) kept = buffer;
  }

  RowSums<Real> sums;
  if (kept) {
    sums = row_sums(rows.target, row, logits, classes,
                    [&](int64_t i, int64_t count, auto exponentials)
                        JAXLOSS_IN_LOOP { store_step(kept + i, exponentials, count); });
  } else {
    sums = row_sums(rows.target, row, logits, classes, [](int64_t, int64_t, const auto&) JAXLOSS_IN_LOOP {});
  }
  const Real log_sum = sums.exponentials.log();
  const Real loss = row_loss(rows.target, row, logits, classes, sums, log_sum, rows.ceiling);
  rows.store_results(row, loss, sums.max, log_sum);
  RowScale<Real> scale{1 / sums.exponentials.whole(), sums.target, weight, -1, Real(0)};
  if constexpr (by_index) {
    if (sums.target != 0) scale.apart = rows.target.index[row];
  } else {
    // The logits may be overwritten; in a sure row one exponential is 1.
    if (gradient && is_sure(sums.exponentials.whole())) {
      scale.apart = kept ? first_equal(kept, classes, Real(1)) : first_equal(logits, classes, sums.max);
    }
  }
  if (gradient && scale.apart >= 0) scale.missing = probability_less_one(by_index ? -sums.below_max : Real(0), log_sum);
  if (kept) {
    row_gradient(rows.target, row, KeptExponentials<Logit>{kept}, classes, scale, gradient);
  } else if (gradient) {
    row_gradient(rows.target, row, ComputedExponentials<Logit>{logits, sums.max}, classes, scale, gradient);
  }
}

// Rows [begin, end).
template <class Logit, class Target>
void cross_entropy_rows(const CrossEntropyRows<Logit, Target>& rows, int64_t begin, int64_t end) {
  int64_t row = all_narrow_rows(rows, begin, end);
  const bool apart = rows.gradient && !in_gradient<Logit> && row < end;
  const Buffer<Accumulator<Logit>> buffer(apart ? rows.classes : 0);
  for (RowWeights<Accumulator<Logit>> weights(rows, row); row < end; row++) {
    const auto weight = weights.next();
    if (!is_masked(weight)) {
      cross_entropy_row(rows, row, weight, buffer.numbers);
      continue;
    }
    rows.store_results(row, 0, 0, 0);
    if (rows.gradient) std::memset(rows.gradient + row * rows.classes, 0, rows.classes * sizeof(Logit));
  }
}

// Rows [begin, end).
template <class Logit, class Target>
void cross_entropy_gradient_rows(const CrossEntropyGradientRows<Logit, Target>& rows, int64_t begin, int64_t end) {
  using Real = Accumulator<Logit>;
  int64_t row = all_narrow_rows(rows, begin, end);
  for (RowWeights<Real> weights(rows, row); row < end; row++) {
    const Logit* logits = rows.logits + row * rows.classes;
    const Real max = rows.max[row], log_sum = rows.log_sum[row];
    RowScale<Real> scale{exponential(-log_sum), rows.target_sum[row], weights.next(), -1, Real(0)};
    // Read now: the gradient may overwrite the logits.
    if constexpr (std::is_same_v<Target, ClassIndices>) {
      const int64_t index = rows.target.index[row];
      const bool here = index >= 0 && index < rows.classes;  // else it belongs to another slice of the vocabulary
      if (here) scale.apart = index;
      if (here) scale.missing = probability_less_one(number(logits + index) - max, log_sum);
    } else {
      if (is_sure(exponential(log_sum))) scale.apart = first_equal(logits, rows.classes, max);
      scale.missing = probability_less_one(Real(0), log_sum);
    }
    row_gradient(rows.target, row, ComputedExponentials<Logit>{logits, max}, rows.classes, scale,
                 rows.gradient + row * rows.classes);
  }
}

}  // namespace jaxloss::JAXLOSS_ISA
