// Cross entropy on the CPU: a row at a time, three passes over a row that stays in the cache: its maximum, the sum of
// its exponentials, its gradient.
#pragma once

#include "cpu/cross_entropy_narrow.h"
#include "cpu/simd.h"
#include "maths/cross_entropy.h"
#include "rows.h"

namespace jaxloss::JAXLOSS_ISA {

template <class Logit>
using ValueOf = typename Step<Logit>::Value;

template <class Stored>
JAXLOSS_INLINE Accumulator<Stored> number(const Stored* x) {
  return lane(load_step(x, 1), 0);
}

template <class Logit>
JAXLOSS_INLINE Accumulator<Logit> row_max(const Logit* logits, int64_t classes) {
  using Value = ValueOf<Logit>;
  const auto least = no_logits<Accumulator<Logit>>().max;
  constexpr int64_t step = Step<Logit>::width;
  Value maxima(least);
  auto max = least;
  for_each_step<Logit>(classes, [&](int64_t i, int64_t count) {
    if (count == step) {
      maxima = at_least(maxima, load_step(logits + i, count));
    } else {
      for (int64_t k = 0; k < count; k++) max = at_least(max, number(logits + i + k));
    }
  });
  for (int64_t k = 0; k < step; k++) max = at_least(max, lane(maxima, k));
  return max;
}

template <class Logit>
JAXLOSS_INLINE SoftmaxSums<Accumulator<Logit>> softmax_sums(const Logit* logits, int64_t classes) {
  using Value = ValueOf<Logit>;
  const auto max = row_max(logits, classes);
  const double sum = sum_over_steps<Logit>(
      classes, [&](int64_t i, int64_t count) { return exponential(load_step(logits + i, count) - Value(max)); });
  return {max, static_cast<Accumulator<Logit>>(sum)};
}

// What a row's target sums to: 1 for a class index, 0 for one that is out of range.
template <class Real>
JAXLOSS_INLINE Real target_sum(ClassIndices target, int64_t row, int64_t classes) {
  return target.index[row] >= 0 && target.index[row] < classes ? 1 : 0;
}
template <class Real, class Stored>
JAXLOSS_INLINE Real target_sum(ClassProbabilities<Stored> target, int64_t row, int64_t classes) {
  const Stored* probability = target.probability + row * classes;
  return static_cast<Real>(
      sum_over_steps<Stored>(classes, [&](int64_t i, int64_t count) { return load_step(probability + i, count); }));
}

template <class Logit>
JAXLOSS_INLINE auto row_loss(ClassIndices target, int64_t row, const Logit* logits, int64_t classes,
                             Accumulator<Logit> max, Accumulator<Logit> log_sum, Accumulator<Logit> ceiling) {
  const int32_t index = target.index[row];
  if (index < 0 || index >= classes) return static_cast<Accumulator<Logit>>(__builtin_nan(""));
  return negative_log_likelihood(log_sum, number(logits + index) - max, ceiling);
}
template <class Logit, class Stored>
JAXLOSS_INLINE auto row_loss(ClassProbabilities<Stored> target, int64_t row, const Logit* logits, int64_t classes,
                             Accumulator<Logit> max, Accumulator<Logit> log_sum, Accumulator<Logit> ceiling) {
  using Value = ValueOf<Logit>;
  const Stored* probability = target.probability + row * classes;
  return static_cast<Accumulator<Logit>>(sum_over_steps<Logit>(classes, [&](int64_t i, int64_t count) {
    const Value logit_minus_max = load_step(logits + i, count) - Value(max);
    const Value nll = negative_log_likelihood(Value(log_sum), logit_minus_max, Value(ceiling));
    return weighted(load_step(probability + i, count), nll);
  }));
}

// What the gradient of a row needs besides its logits and target.
template <class Real>
struct RowScale {
  Real max, softmax, target_sum, weight;  // the softmax is exp(x − max) · softmax
};

// gradient = (softmax · target_sum − target) · weight
template <class Logit>
JAXLOSS_INLINE void row_gradient(ClassIndices target, int64_t row, const Logit* logits, int64_t classes,
                                 RowScale<Accumulator<Logit>> scale, Logit* gradient) {
  using Value = ValueOf<Logit>;
  if (scale.weight == 0 || scale.target_sum == 0) {
    std::memset(gradient, 0, classes * sizeof(Logit));
    return;
  }
  const int32_t index = target.index[row];
  const bool here = index >= 0 && index < classes;  // else it belongs to another slice of the vocabulary
  // Read now: the gradient may overwrite the logits.
  const Accumulator<Logit> label_logit = here ? number(logits + index) : scale.max;
  for_each_step<Logit>(classes, [&](int64_t i, int64_t count) {
    const Value exponentials = exponential(load_step(logits + i, count) - Value(scale.max));
    store_step(gradient + i, exponentials * Value(scale.softmax * scale.weight), count);
  });
  if (!here) return;
  const Value probability = exponential(Value(label_logit - scale.max)) * Value(scale.softmax);
  store_step(gradient + index, (probability - Value(1)) * Value(scale.weight), 1);
}
template <class Logit, class Stored>
JAXLOSS_INLINE void row_gradient(ClassProbabilities<Stored> target, int64_t row, const Logit* logits, int64_t classes,
                                 RowScale<Accumulator<Logit>> scale, Logit* gradient) {
  using Value = ValueOf<Logit>;
  if (scale.weight == 0) {
    std::memset(gradient, 0, classes * sizeof(Logit));
    return;
  }
  const Stored* probability = target.probability + row * classes;
  for_each_step<Logit>(classes, [&](int64_t i, int64_t count) {
    const Value exponentials = exponential(load_step(logits + i, count) - Value(scale.max));
    const Value difference = exponentials * Value(scale.softmax * scale.target_sum) - load_step(probability + i, count);
    store_step(gradient + i, difference * Value(scale.weight), count);
  });
}

// Rows [begin, end).
template <class Logit, class Target>
void cross_entropy_rows(const CrossEntropyRows<Logit, Target>& rows, int64_t begin, int64_t end) {
  using Real = Accumulator<Logit>;
  for (int64_t row = all_narrow_rows(rows, begin, end); row < end; row++) {
    const Logit* logits = rows.logits + row * rows.classes;
    Logit* gradient = rows.gradient ? rows.gradient + row * rows.classes : nullptr;
    const Real weight = rows.weight_of(row);
    Real loss = 0, max = 0, log_sum = 0;
    if (!taken_out(weight)) {
      const SoftmaxSums<Real> sums = softmax_sums(logits, rows.classes);
      max = sums.max;
      log_sum = logarithm(sums.sum);
      loss = row_loss(rows.target, row, logits, rows.classes, max, log_sum, rows.ceiling);
      if (gradient) {
        const Real total = target_sum<Real>(rows.target, row, rows.classes);
        row_gradient(rows.target, row, logits, rows.classes, RowScale<Real>{max, 1 / sums.sum, total, weight},
                     gradient);
      }
    } else if (gradient) {
      std::memset(gradient, 0, rows.classes * sizeof(Logit));
    }
    rows.loss[row] = loss;
    if (rows.max) rows.max[row] = max;
    if (rows.log_sum) rows.log_sum[row] = log_sum;
  }
}

// Rows [begin, end).
template <class Logit, class Target>
void cross_entropy_gradient_rows(const CrossEntropyGradientRows<Logit, Target>& rows, int64_t begin, int64_t end) {
  using Real = Accumulator<Logit>;
  for (int64_t row = begin; row < end; row++) {
    const RowScale<Real> scale{rows.max[row], exponential(-rows.log_sum[row]), rows.target_sum[row],
                               rows.weight_of(row)};
    row_gradient(rows.target, row, rows.logits + row * rows.classes, rows.classes, scale,
                 rows.gradient + row * rows.classes);
  }
}

}  // namespace jaxloss::JAXLOSS_ISA
