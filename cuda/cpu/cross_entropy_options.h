// Cross entropy with options on the CPU: a row at a time, in passes over numbers that stay in the cache. Its logits, as
// the options make them, are kept in a buffer unless they are as they are stored; what a pass computes by an
// exponential is kept for those that follow.
#pragma once

#include "cpu/buffer.h"
#include "cpu/cross_entropy_options_narrow.h"
#include "cpu/option_passes.h"
#include "maths/cross_entropy_options.h"

namespace jaxloss::JAXLOSS_ISA {

// Of a row's numbers, where they have to be kept.
template <class Real>
struct OptionBuffers {
  Real *z, *exponentials, *slopes;  // [classes]
};

template <class Target>
struct StoredProbability {
  using type = void;
};
template <class Stored>
struct StoredProbability<ClassProbabilities<Stored>> {
  using type = Stored;
};

template <class Logit, class Target>
struct OptionRow {
  using Rows = CrossEntropyOptionRows<Logit, Target>;
  using Real = Accumulator<Logit>;
  using Targets = ClassTargets<Real, typename StoredProbability<Target>::type>;
  static constexpr bool by_index = std::is_same_v<Target, ClassIndices>;
  static constexpr Real infinity = static_cast<Real>(__builtin_inf()), nan = static_cast<Real>(__builtin_nan(""));

  const Rows& rows;
  const int64_t row;
  const RowObjective<Real> objective;
  const OptionBuffers<Real> buffers;
  const Real* z;       // as the loss sees them once the labels have been moved
  const Real* slopes;  // dz / dx without the temperature's part; null where they are 1
  Real* kept;          // the exponentials; null without a gradient
  Real max;            // of what z is now
  bool dense;          // whether classes have targets that are no label's

  JAXLOSS_INLINE OptionRow(const Rows& rows_, int64_t row_, const OptionBuffers<Real>& buffers_)
      : rows(rows_), row(row_), objective(rows_, row_), buffers(buffers_) {
    const Logit* logits = rows.logits + row * rows.classes;
    z = buffers.z;
    slopes = objective.capped && rows.gradient ? buffers.slopes : nullptr;
    dense = !by_index || objective.smooth != 0;
    kept = rows.gradient ? buffers.exponentials : nullptr;
    if (objective.capped) {
      max = capped_logits(logits, objective.classes, objective, buffers.z, rows.gradient ? buffers.slopes : nullptr);
    } else if (is_as_stored()) {
      if constexpr (in_gradient<Logit>) z = logits;
      max = rows.known_max ? rows.known_max[row] : row_max(z, objective.classes);
    } else {
      max = scaled_logits(logits, objective.classes, objective.inverse_temperature, buffers.z);
    }
    if constexpr (in_gradient<Logit>) {
      if (rows.gradient && z != gradient()) kept = gradient();  // whose memory may be that of the logits
    }
  }

  // Whether the logits need no place of their own.
  JAXLOSS_INLINE bool is_as_stored() const {
    return in_gradient<Logit> && !objective.capped && objective.inverse_temperature == 1 && !objective.moves_label;
  }
  JAXLOSS_INLINE Logit* gradient() const { return rows.gradient + row * rows.classes; }
  JAXLOSS_INLINE Targets targets() const {
    const Real* class_z = objective.smooth != 0 ? z : nullptr;
    if constexpr (by_index)
      return {objective.smooth, objective.hard, objective.class_weights, class_z, nullptr};
    else
      return {objective.smooth, objective.hard, objective.class_weights, class_z,
              rows.target.probability + row * rows.classes};
  }

  // f(which label), summed.
  template <class Body>
  JAXLOSS_INLINE Real sum_of_labels(Body body) const {
    Real total = 0;
    for (int which = 0; which < 2; which++) {
      if (objective.holds(which)) total += body(which);
    }
    return total;
  }

  // The first class of the largest logit, −1 if there is none.
  JAXLOSS_INLINE int64_t first_largest() const { return first_equal(z, objective.classes, max); }
  // The same, or a label if it has one of the largest: that needs no search.
  JAXLOSS_INLINE int64_t largest() const {
    for (int which = 0; which < 2; which++) {
      if (objective.holds(which) && z[objective.label[which]] == max) return objective.label[which];
    }
    return first_largest();
  }

  // The first class of the largest logit; NaNs are passed over, and no finite logit is below all.
  JAXLOSS_INLINE int32_t predicted(int64_t best) const {
    if (best >= 0) return static_cast<int32_t>(best);
    for (int64_t i = 0; i < objective.classes; i++) {
      if (best < 0 ? z[i] == z[i] : z[i] > z[best]) best = i;
    }
    return static_cast<int32_t>(best < 0 ? 0 : best);
  }
  // How many classes come before the label in order of logits, of equal ones the first.
  JAXLOSS_INLINE int32_t rank() const {
    if (!(by_index && objective.holds(0))) return static_cast<int32_t>(rows.smoothed_classes);
    const int64_t label = objective.label[0];
    return static_cast<int32_t>(count_above<true>(z, 0, label, z[label]) +
                                count_above<false>(z, label + 1, objective.classes, z[label]));
  }

  // The logits of labels become what the loss sees.
  JAXLOSS_INLINE void move_labels() {
    bool largest_moved = false;
    Real moved[2] = {0, 0};
    sum_of_labels([&](int which) {
      moved[which] = z[objective.label[which]] - objective.margin * objective.inverse_temperature;
      largest_moved = largest_moved || z[objective.label[which]] == max;
      return Real(0);
    });
    sum_of_labels([&](int which) { return buffers.z[objective.label[which]] = moved[which]; });
    if (largest_moved) max = row_max(z, objective.classes);
    sum_of_labels([&](int which) { return max = at_least(max, moved[which]); });
  }

  JAXLOSS_INLINE TargetSums<Real> sums_of(const Targets& targets, Real log_sum) const {
    if constexpr (by_index) {
      const auto pass = objective.class_weights ? smoothing_sums<true, Real> : smoothing_sums<false, Real>;
      const auto sums = pass(targets, z, objective.classes, max, log_sum, rows.ceiling);
      if (!sums.masked) return sums;
    }
    return target_sums(targets, z, objective.classes, max, log_sum, rows.ceiling);
  }

  // Of labels, or of the largest logit of a sure row, the softmax times its total less the target in a form in which
  // nothing cancels. `beyond_labels`: what of the total no label's target is, if that is known.
  JAXLOSS_INLINE void store_gradient_of(Targets targets, int64_t sure, Real softmax, Real log_sum, Real total,
                                        Real weight, const Real* beyond_labels,
                                        const StatsWeights<Real>* of_stats = nullptr) const {
    Real factor = weight * objective.inverse_temperature, smooth = objective.smooth;
    const auto exactly = [&](int64_t i, Real target_of_class, Real others) JAXLOSS_IN_LOOP {
      const Real z_minus_max = z[i] - max, missing = probability_less_one(z_minus_max, log_sum);
      const Real p = exponential(z_minus_max) * softmax;
      Real result = label_derivative(p, missing, total, target_of_class, others) * factor;
      if (of_stats) {
        result += p * of_stats->of(z_minus_max) * objective.inverse_temperature;
      }
      return ValueOf<Real>(result * (slopes ? slopes[i] : Real(1)));
    };
    // Before anything is stored: the gradient may overwrite the logits.
    ValueOf<Real> of_label[2] = {}, of_sure{};
    sum_of_labels([&](int which) {
      const int64_t i = objective.label[which];
      const auto of_labels = [&](bool here) {
        return sum_of_labels(
            [&](int other) { return (objective.label[other] == i) == here ? objective.label_target(other) : Real(0); });
      };
      const Real of_class = dense ? targets.of(i) : Real(0), target = of_labels(true) + of_class;
      of_label[which] =
          exactly(i, target, beyond_labels ? (*beyond_labels - of_class) + of_labels(false) : total - target);
      return Real(0);
    });
    if (sure >= 0) of_sure = exactly(sure, targets.of(sure), total - targets.of(sure));
    Real of_softmax = softmax * total;
    if (of_stats) {  // then the weight of the loss is no factor of all
      weigh_exponentials(kept, z, objective.classes, max, weight * total, *of_stats);
      of_softmax = softmax, factor = objective.inverse_temperature, smooth *= weight;
      targets.smooth *= weight, targets.hard *= weight;
    }
    const GradientOfRow<Logit> of_row{kept, slopes, objective.classes, of_softmax, factor, gradient()};
    if (dense && !targets.is_same_for_all()) {
      store_gradient(of_row, targets);
    } else {
      store_gradient(of_row, smooth);
    }
    sum_of_labels([&](int which) {
      store_step(gradient() + objective.label[which], of_label[which], 1);
      return Real(0);
    });
    if (sure >= 0) store_step(gradient() + sure, of_sure, 1);
    std::memset(gradient() + objective.classes, 0, (rows.classes - objective.classes) * sizeof(Logit));
  }
  JAXLOSS_INLINE void store_no_gradient() const { std::memset(gradient(), 0, rows.classes * sizeof(Logit)); }

  // The gradient of a row of which the rest is known.
  JAXLOSS_INLINE void store_known(Real weight, FollowingRow following) {
    if (weight == 0) return store_no_gradient();
    if (objective.moves_label) move_labels();
    max = rows.known_max[row];
    const Real log_sum = rows.known_log_sum[row];
    const int64_t sure = !by_index && is_sure(exponential(log_sum)) ? first_largest() : -1;
    option_sums<false>(z, objective.classes, max, -1, kept, following);
    store_gradient_of(targets(), sure, exponential(-log_sum), log_sum, rows.known_total[row], weight, nullptr);
  }

  JAXLOSS_INLINE void store_results(Real weight, FollowingRow following) {
    int64_t of_max = -1;
    if (rows.predicted) {
      // What is predicted does not depend on the label.
      of_max = first_largest();
      rows.predicted[row] = predicted(of_max);
      rows.rank[row] = rank();
    }
    if (objective.moves_label) move_labels();
    if (of_max < 0 || objective.moves_label) of_max = largest();
    if (!is_finite(max)) of_max = -1;  // its exponential is not 1
    const bool with_dot = rows.entropy || rows.of_entropy;
    const auto sums = with_dot ? option_sums<true>(z, objective.classes, max, of_max, kept, following)
                               : option_sums<false>(z, objective.classes, max, of_max, kept, following);
    const Real sum = sums.exponentials.whole(), log_sum = sums.exponentials.log(), lse = max + log_sum;
    Targets targets = this->targets();
    TargetSums<Real> of_targets{0, 0, 0, false};
    if (dense) {
      of_targets = sums_of(targets, log_sum);
      if (!of_targets.masked) targets.z = nullptr;
    }
    const auto nll = [&](int which, Real ceiling) {
      return negative_log_likelihood(log_sum, z[objective.label[which]] - max, ceiling);
    };
    if (rows.loss) {
      const Real loss = of_targets.loss + sum_of_labels([&](int which) {
                          return weighted(objective.label_target(which), nll(which, rows.ceiling));
                        });
      rows.loss[row] = objective.valid ? where_a_number(log_sum, loss + weighted(objective.z_loss, lse * lse)) : nan;
    }
    if (rows.max) rows.max[row] = max;
    if (rows.log_sum) rows.log_sum[row] = log_sum;
    if (rows.nll) {
      const Real of_labels =
          sum_of_labels([&](int which) { return weighted(objective.share[which], nll(which, infinity)); });
      rows.nll[row] = objective.valid ? where_a_number(log_sum, of_targets.nll + of_labels) : nan;
    }
    if (rows.entropy) rows.entropy[row] = log_sum - sums.dot / sum;
    if (!rows.gradient) return;
    if ((weight == 0 || !objective.valid) && !rows.of_lse) return store_no_gradient();
    const Real beyond_labels = of_targets.total + 2 * weighted(objective.z_loss, lse);
    const Real total = beyond_labels + sum_of_labels([&](int which) { return objective.label_target(which); });
    const int64_t sure = !by_index && is_sure(sum) ? of_max : -1;
    if (!rows.of_lse) return store_gradient_of(targets, sure, 1 / sum, log_sum, total, weight, &beyond_labels);
    const StatsWeights<Real> of_stats{rows.of_lse[row], rows.of_entropy[row], sums.dot / sum};
    const Real of_loss = objective.valid ? weight : Real(0);
    store_gradient_of(targets, sure, 1 / sum, log_sum, total, of_loss, &beyond_labels, &of_stats);
  }
};

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
  begin = all_narrow_option_rows(rows, begin, end);
  const int64_t apart = rows.classes;
  const Buffer<Real> buffer(begin < end ? 3 * apart : 0);
  const OptionBuffers<Real> buffers{buffer.numbers, buffer.numbers + apart, buffer.numbers + 2 * apart};
  for (int64_t row = begin; row < end; row++) {
    const Real weight = rows.row_weight.of(row);
    if (is_masked(weight)) {
      write_masked(rows, row);
      continue;
    }
    const Logit* next = row + 1 < end ? rows.logits + (row + 1) * rows.classes : nullptr;
    const FollowingRow following{reinterpret_cast<const char*>(next), sizeof(Logit)};
    OptionRow<Logit, Target> of(rows, row, buffers);
    if (rows.known_max) {
      of.store_known(weight, following);
    } else {
      of.store_results(weight, following);
    }
  }
}

}  // namespace jaxloss::JAXLOSS_ISA
