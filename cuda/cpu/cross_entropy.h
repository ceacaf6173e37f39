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
  for_each_step<Logit>(classes,
                       [&](int64_t i, int64_t count) { maxima = at_least(maxima, load_step(logits + i, count)); });
  return max_of_lanes(maxima);
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
  JAXLOSS_INLINE Accumulator<Logit> at(int64_t i) const {
    return lane(exponential_of_negative(Value(number(logits + i) - max)), 0);
  }
};
template <class Logit>
struct KeptExponentials {
  const Accumulator<Logit>* kept;

  JAXLOSS_INLINE ValueOf<Logit> load(int64_t i, int64_t count) const { return load_step(kept + i, count); }
  JAXLOSS_INLINE Accumulator<Logit> at(int64_t i) const { return kept[i]; }
};

template <class Logit>
JAXLOSS_INLINE SoftmaxSums<Accumulator<Logit>> softmax_sums(const Logit* logits, int64_t classes) {
  const ComputedExponentials<Logit> exponentials{logits, row_max(logits, classes)};
  const double sum =
      sum_over_steps<Logit>(classes, [&](int64_t i, int64_t count) { return exponentials.load(i, count); });
  return {exponentials.max, static_cast<Accumulator<Logit>>(sum)};
}

// What is added up over a row.
template <class Real>
struct RowSums {
  Real max, sum;   // sum of exp(x − max)
  Real target;     // of the target t: 1 for a class index, 0 for one that is out of range
  Real below_max;  // of t · (max − x)
};

// `store(i, count, values)` is given the exponentials as the first of the values.
template <class Logit, class Store>
JAXLOSS_INLINE RowSums<Accumulator<Logit>> row_sums(ClassIndices target, int64_t row, const Logit* logits,
                                                    int64_t classes, Store store) {
  using Real = Accumulator<Logit>;
  const ComputedExponentials<Logit> exponentials{logits, row_max(logits, classes)};
  const int32_t index = target.index[row];
  const bool valid = index >= 0 && index < classes;
  const Real below_max = valid ? exponentials.max - number(logits + index) : Real(0);  // before anything is stored
  double total[1];
  sums_over_steps<Logit>(
      classes, total,
      [&](int64_t i, int64_t count, ValueOf<Logit>(&value)[1]) { value[0] = exponentials.load(i, count); }, store);
  return {exponentials.max, static_cast<Real>(total[0]), Real(valid), below_max};
}
template <class Logit, class Stored, class Store>
JAXLOSS_INLINE RowSums<Accumulator<Logit>> row_sums(ClassProbabilities<Stored> target, int64_t row, const Logit* logits,
                                                    int64_t classes, Store store) {
  using Real = Accumulator<Logit>;
  using Value = ValueOf<Logit>;
  const Stored* probability = target.probability + row * classes;
  const Real max = row_max(logits, classes);
  double total[3];
  sums_over_steps<Logit>(
      classes, total,
      [&](int64_t i, int64_t count, Value(&values)[3]) {
        const Value x_minus_max = load_step(logits + i, count) - Value(max);
        values[0] = exponential_of_negative(x_minus_max);
        values[1] = load_step(probability + i, count);
        values[2] = weighted(values[1], -x_minus_max);
      },
      store);
  return {max, static_cast<Real>(total[0]), static_cast<Real>(total[1]), static_cast<Real>(total[2])};
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
  if (is_finite(ceiling)) {
    return static_cast<Real>(sum_over_steps<Logit>(classes, [&](int64_t i, int64_t count) {
      const Value x_minus_max = load_step(logits + i, count) - Value(sums.max);
      const Value nll = negative_log_likelihood(Value(log_sum), x_minus_max, Value(ceiling));
      return weighted(load_step(probability + i, count), nll);
    }));
  }
  if (is_finite(log_sum)) return log_sum * sums.target + sums.below_max;
  return static_cast<Real>(sum_over_steps<Logit>(classes, [&](int64_t i, int64_t count) {
    return weighted(load_step(probability + i, count), Value(log_sum));  // in which targets cannot cancel
  }));
}

// What the gradient of a row needs besides its exponentials and target.
template <class Real>
struct RowScale {
  Real softmax, target_sum, weight;  // the softmax is exp(x − max) · softmax
};

// gradient = (softmax · target_sum − target) · weight
template <class Logit, class Exponentials>
JAXLOSS_INLINE void row_gradient(ClassIndices target, int64_t row, Exponentials exponentials, int64_t classes,
                                 RowScale<Accumulator<Logit>> scale, Logit* gradient) {
  using Value = ValueOf<Logit>;
  using Real = Accumulator<Logit>;
  if (scale.weight == 0 || scale.target_sum == 0) {
    std::memset(gradient, 0, classes * sizeof(Logit));
    return;
  }
  const int32_t index = target.index[row];
  const bool here = index >= 0 && index < classes;  // else it belongs to another slice of the vocabulary
  // Read now: the gradient may overwrite the logits, or the exponentials.
  const Real probability = here ? exponentials.at(index) * scale.softmax : Real(0);
  store_steps(gradient, classes, [&](int64_t i, int64_t count) {
    return exponentials.load(i, count) * Value(scale.softmax * scale.weight);
  });
  if (here) store_step(gradient + index, Value((probability - 1) * scale.weight), 1);
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
  store_steps(gradient, classes, [&](int64_t i, int64_t count) {
    const Value softmax = exponentials.load(i, count) * Value(scale.softmax * scale.target_sum);
    return (softmax - load_step(probability + i, count)) * Value(scale.weight);
  });
}

// The exponentials of float32 and float64 are kept in the memory of the gradient, those of 16-bit logits apart.
template <class Logit>
constexpr bool in_gradient = std::is_same_v<Logit, Accumulator<Logit>>;

// One row that is not taken out. `buffer` has room for its exponentials where that is not in the gradient.
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
                    [&](int64_t i, int64_t count, const auto& values) { store_step(kept + i, values[0], count); });
  } else {
    sums = row_sums(rows.target, row, logits, classes, [](int64_t, int64_t, const auto&) {});
  }
  const Real log_sum = logarithm(sums.sum);
  const Real loss = row_loss(rows.target, row, logits, classes, sums, log_sum, rows.ceiling);
  rows.store_results(row, loss, sums.max, log_sum);
  const RowScale<Real> scale{1 / sums.sum, sums.target, weight};
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
    if (!taken_out(weight)) {
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
    const RowScale<Real> scale{exponential(-rows.log_sum[row]), rows.target_sum[row], weights.next()};
    row_gradient(rows.target, row, ComputedExponentials<Logit>{logits, rows.max[row]}, rows.classes, scale,
                 rows.gradient + row * rows.classes);
  }
}

}  // namespace jaxloss::JAXLOSS_ISA
