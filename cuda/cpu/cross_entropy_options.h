// Cross entropy with options on the CPU: a row at a time. Its logits, as the options make them, are kept in a buffer
// that stays in the cache.
#pragma once

#include <initializer_list>

#include "cpu/buffer.h"
#include "cpu/cross_entropy.h"
#include "maths/cross_entropy_options.h"

namespace jaxloss::JAXLOSS_ISA {

template <class Logit, class Target>
struct OptionRow {
  using Rows = CrossEntropyOptionRows<Logit, Target>;
  using Real = Accumulator<Logit>;
  using Value = typename Step<Logit>::Value;
  static constexpr bool by_index = std::is_same_v<Target, ClassIndices>;

  const Rows& rows;
  int64_t row;
  const RowObjective<Real> objective;
  Real* z;  // [classes]

  JAXLOSS_INLINE OptionRow(const Rows& rows_, int64_t row_, Real* buffer)
      : rows(rows_), row(row_), objective(rows_, row_), z(buffer) {
    for_each_step<Logit>(objective.classes, [&](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
      store_step(z + i, objective.logit(load_step(logits() + i, count)), count);
    });
    if (objective.moves_label) set_label_logits(true);
  }

  // As the loss sees them, or as those of other classes are made. The gradient has not been written yet.
  JAXLOSS_INLINE void set_label_logits(bool moved) const {
    sum_of_labels([&](int which) {
      const int64_t i = objective.label[which];
      const Value x = load_step(logits() + i, 1);
      store_step(z + i, moved ? objective.label_logit(x) : objective.logit(x), 1);
      return Real(0);
    });
  }

  JAXLOSS_INLINE const Logit* logits() const { return rows.logits + row * rows.classes; }

  JAXLOSS_INLINE Value class_weights(int64_t i, int64_t count) const {
    return objective.class_weights ? load_step(objective.class_weights + i, count) : Value(1);
  }
  JAXLOSS_INLINE Value probabilities(int64_t i, int64_t count) const {
    return load_step(rows.target.probability + row * rows.classes + i, count);
  }
  // The target without what the labels add to it. Masked classes are not smoothed over.
  JAXLOSS_INLINE Value target(int64_t i, int64_t count) const {
    const Value masked(-__builtin_inf());
    Value a = select(load_step(z + i, count) == masked, Value(0), Value(objective.smooth));
    if constexpr (!by_index) a = a + Value(objective.hard) * probabilities(i, count);
    return a * class_weights(i, count);
  }
  JAXLOSS_INLINE bool is_dense() const { return !by_index || objective.smooth != 0; }

  // f(i, count) summed over the classes.
  template <class Body>
  JAXLOSS_INLINE Real sum(Body body) const {
    return static_cast<Real>(sum_over_steps<Real>(objective.classes, body));
  }
  template <class Body>
  JAXLOSS_INLINE Real sum_of_labels(Body body) const {
    Real total = 0;
    for (int which = 0; which < 2; which++) {
      if (objective.holds(which)) total += body(which);
    }
    return total;
  }

  JAXLOSS_INLINE Real total() const {
    const Real dense =
        is_dense() ? sum([&](int64_t i, int64_t count) JAXLOSS_IN_LOOP { return target(i, count); }) : Real(0);
    return dense + sum_of_labels([&](int which) { return objective.label_target(which); });
  }

  // `a` is the target of the loss, `share` what a label adds to it.
  template <class Targets, class Share>
  JAXLOSS_INLINE Real loss(Real max, Real log_sum, Real ceiling, bool dense, Targets targets, Share share) const {
    const Real of_all = dense ? sum([&](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
      const Value z_minus_max = load_step(z + i, count) - Value(max);
      return weighted(targets(i, count), negative_log_likelihood(Value(log_sum), z_minus_max, Value(ceiling)));
    })
                              : Real(0);
    return of_all + sum_of_labels([&](int which) {
             return weighted(share(which), negative_log_likelihood(log_sum, z[objective.label[which]] - max, ceiling));
           });
  }

  JAXLOSS_INLINE Real entropy(Real max, Real sum_of_exponentials, Real log_sum) const {
    const Real dot = sum([&](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
      const Value z_minus_max = load_step(z + i, count) - Value(max);
      return weighted(exponential(z_minus_max), z_minus_max);
    });
    return log_sum - dot / sum_of_exponentials;
  }

  // How many classes come before the label in order of logits, of equal ones the first.
  JAXLOSS_INLINE int32_t rank() const {
    const int64_t label = objective.label[0], after = label + 1;
    const Value of_label(z[label]), one(1), none(0);
    const double before_label = sum_over_steps<Real>(label, [&](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
      const Value other = load_step(z + i, count);
      return select(other > of_label, one, select(other == of_label, one, none));
    });
    const double after_label =
        sum_over_steps<Real>(objective.classes - after, [&](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
          return select(load_step(z + after + i, count) > of_label, one, none);
        });
    return static_cast<int32_t>(before_label + after_label);
  }

  // Of the labels, or of the largest logit of a sure row, the softmax times its total less the target in a form in
  // which nothing cancels.
  JAXLOSS_INLINE void gradient(Real max, Real softmax, Real log_sum, Real total, Real weight, Logit* result) const {
    if (weight == 0 || !(objective.valid || rows.known_max)) {
      std::memset(result, 0, rows.classes * sizeof(Logit));
      return;
    }
    const auto exactly = [&](int64_t i, Real target_of_class) JAXLOSS_IN_LOOP {
      const Real missing = probability_less_one(z[i] - max, log_sum);
      const Value slope = objective.slope(load_step(logits() + i, 1));
      return Value((total * missing + (total - target_of_class)) * weight) * slope;
    };
    const int64_t sure = !by_index && is_sure(exponential(log_sum)) ? first_equal(z, objective.classes, max) : -1;
    // Before anything is stored: the gradient may overwrite the logits.
    Value of_label[2] = {Value(0), Value(0)}, of_sure(0);
    sum_of_labels([&](int which) {
      const int64_t i = objective.label[which];
      const Real added = sum_of_labels(
          [&](int other) { return objective.label[other] == i ? objective.label_target(other) : Real(0); });
      of_label[which] = exactly(i, added + (is_dense() ? lane(target(i, 1), 0) : Real(0)));
      return Real(0);
    });
    if (sure >= 0) of_sure = exactly(sure, lane(target(sure, 1), 0));
    store_steps(result, objective.classes, [&](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
      const Value a = is_dense() ? target(i, count) : Value(0);
      const Value exponentials = exponential(load_step(z + i, count) - Value(max));
      const Value slope = objective.slope(load_step(logits() + i, count));
      return (exponentials * Value(softmax * total) - a) * Value(weight) * slope;
    });
    sum_of_labels([&](int which) {
      store_step(result + objective.label[which], of_label[which], 1);
      return Real(0);
    });
    if (sure >= 0) store_step(result + sure, of_sure, 1);
    std::memset(result + objective.classes, 0, (rows.classes - objective.classes) * sizeof(Logit));
  }
};

// The first class of the largest logit; NaNs are passed over, and no finite logit is below all.
template <class Real>
JAXLOSS_INLINE int32_t predicted(const Real* z, int64_t classes, Real max) {
  int64_t best = first_equal(z, classes, max);
  if (best >= 0) return static_cast<int32_t>(best);
  for (int64_t i = 0; i < classes; i++) {
    if (best < 0 ? z[i] == z[i] : z[i] > z[best]) best = i;
  }
  return static_cast<int32_t>(best < 0 ? 0 : best);
}

template <class Logit, class Target>
JAXLOSS_INLINE void write_masked(const CrossEntropyOptionRows<Logit, Target>& rows, int64_t row) {
  for (auto* result : {rows.loss, rows.max, rows.log_sum, rows.nll, rows.entropy}) {
    if (result) result[row] = 0;
  }
  if (rows.predicted) rows.predicted[row] = -1;
  if (rows.rank) rows.rank[row] = static_cast<int32_t>(rows.smoothed_classes);
  if (rows.gradient) std::memset(rows.gradient + row * rows.classes, 0, rows.classes * sizeof(Logit));
}

// Rows [begin, end).
template <class Logit, class Target>
void cross_entropy_option_rows(const CrossEntropyOptionRows<Logit, Target>& rows, int64_t begin, int64_t end) {
  using Real = Accumulator<Logit>;
  constexpr bool by_index = std::is_same_v<Target, ClassIndices>;
  constexpr Real infinity = static_cast<Real>(__builtin_inf()), nan = static_cast<Real>(__builtin_nan(""));
  const Buffer<Real> buffer(rows.classes);
  for (int64_t row = begin; row < end; row++) {
    const Real weight = rows.row_weight.of(row);
    if (is_masked(weight)) {
      write_masked(rows, row);
      continue;
    }
    const OptionRow<Logit, Target> of(rows, row, buffer.numbers);
    const auto& objective = of.objective;
    if (rows.known_max) {
      const Real log_sum = rows.known_log_sum[row];
      of.gradient(rows.known_max[row], exponential(-log_sum), log_sum, rows.known_total[row], weight,
                  rows.gradient + row * rows.classes);
      continue;
    }
    const Real max = row_max(of.z, objective.classes);
    const ExponentialSum<Real> exponentials =
        sum_of_exponentials(of.z, objective.classes, max,
                            [](auto x_minus_max) JAXLOSS_IN_LOOP { return exponential_of_negative(x_minus_max); });
    const Real sum = exponentials.whole(), log_sum = exponentials.log(), lse = max + log_sum;
    if (rows.loss) {
      const Real loss = of.loss(
          max, log_sum, rows.ceiling, of.is_dense(),
          [&](int64_t i, int64_t count) JAXLOSS_IN_LOOP { return of.target(i, count); },
          [&](int which) { return objective.label_target(which); });
      rows.loss[row] = objective.valid ? where_a_number(log_sum, loss + weighted(objective.z_loss, lse * lse)) : nan;
    }
    if (rows.max) rows.max[row] = max;
    if (rows.log_sum) rows.log_sum[row] = log_sum;
    if (rows.nll) {
      const Real nll = of.loss(
          max, log_sum, infinity, !by_index,
          [&](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
            if constexpr (by_index)
              return typename Step<Logit>::Value(0);
            else
              return of.probabilities(i, count);
          },
          [&](int which) { return objective.share[which]; });
      rows.nll[row] = objective.valid ? where_a_number(log_sum, nll) : nan;
    }
    if (rows.entropy) rows.entropy[row] = of.entropy(max, sum, log_sum);
    if (rows.predicted) {
      // What is predicted does not depend on the label.
      if (objective.moves_label) of.set_label_logits(false);
      const Real largest = objective.moves_label ? row_max(of.z, objective.classes) : max;
      rows.predicted[row] = predicted(of.z, objective.classes, largest);
      const bool has_label = by_index && objective.holds(0);
      rows.rank[row] = has_label ? of.rank() : static_cast<int32_t>(rows.smoothed_classes);
      if (objective.moves_label) of.set_label_logits(true);
    }
    if (rows.gradient) {
      const Real total = of.total() + 2 * weighted(objective.z_loss, lse);
      of.gradient(max, 1 / sum, log_sum, total, weight, rows.gradient + row * rows.classes);
    }
  }
}

}  // namespace jaxloss::JAXLOSS_ISA
