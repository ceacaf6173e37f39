// Cross entropy with options of rows of few classes on the CPU: as many rows at once as a vector has lanes, a lane a
// row, as in `cross_entropy_narrow.h`. What is computed does not depend on the types that are stored: there is one copy
// for labels, and one for probabilities.
#pragma once

#include "cpu/cross_entropy_narrow.h"
#include "cpu/row_lanes.h"
#include "maths/cross_entropy_options.h"

namespace jaxloss::JAXLOSS_ISA {

// The columns of rows. On the way they become others: `x` what the loss sees, then the gradient; `probabilities` the
// targets of the classes without what labels add.
struct OptionColumns {
  ClassColumns x, exponentials, slopes, class_weights, probabilities;
};

template <bool by_index>
struct NarrowOptions {
  const CrossEntropyOptions<float>& rows;
  const int64_t row, count, width;
  OptionColumns& columns;
  ClassColumns& z;
  const bool wants_gradient, capped, has_class_weights, counts_classes;
  const Integers classes;
  const Vector inverse_temperature;
  Vector hard{1.0}, smooth{0.0};
  bool smoothed, dense;
  LabelLanes label, second;
  bool has_second;

  JAXLOSS_INLINE NarrowOptions(const CrossEntropyOptions<float>& rows_, const int32_t* index, bool wants_gradient_,
                               int64_t row_, int64_t count_, OptionColumns& columns_)
      : rows(rows_),
        row(row_),
        count(count_),
        width(rows_.classes),
        columns(columns_),
        z(columns_.x),
        wants_gradient(wants_gradient_),
        capped(rows_.softcap.given()),
        has_class_weights(rows_.class_weights != nullptr),
        counts_classes(rows_.num_classes.given()),
        classes(counts_classes ? of(rows_.num_classes) : Integers(static_cast<int32_t>(width))),
        inverse_temperature(Vector(1) / of(rows_.temperature)),
        smoothed(rows_.label_smoothing.given()),
        dense(!by_index || smoothed),
        label(index ? index_lanes(index + row_, count_) : Integers(-1), counted_classes(), of(rows_.mix)),
        second(of(rows_.second_label), counted_classes(), Vector(1) - of(rows_.mix)),
        has_second(by_index && rows_.second_label.given()) {
    if (smoothed) {
      const Vector smoothing = of(rows.label_smoothing);
      hard = Vector(1) - smoothing;
      smooth = smoothing / Vector(static_cast<float>(rows.smoothed_classes));
    }
    if (has_class_weights) load_class_weights();
  }

  template <class Number>
  JAXLOSS_INLINE auto of(const RowNumbers<Number>& numbers) const {
    return numbers_of_lanes(numbers, row, count);
  }
  JAXLOSS_INLINE Vector known(const float* numbers) const { return load_step(numbers + row, count); }
  JAXLOSS_INLINE Integers counted_classes() const {
    const Integers all(static_cast<int32_t>(width));
    return select(classes < all, classes, all);
  }
  JAXLOSS_INLINE Integers counted(int64_t j) const { return Integers(static_cast<int32_t>(j)) < classes; }
  JAXLOSS_INLINE Vector class_weight(int64_t j) const {
    return has_class_weights ? columns.class_weights.column[j] : Vector(1);
  }

  JAXLOSS_INLINE void load_class_weights() {
    const int64_t first = set_of_row(rows.rows_per_class_weights, row);
    const bool shared = first == set_of_row(rows.rows_per_class_weights, row + count - 1);
    for (int64_t j = 0; j < width; j++) {
      float of_lanes[kLanes];
      for (int64_t i = 0; i < kLanes && !shared; i++) {
        of_lanes[i] =
            rows.class_weights[set_of_row(rows.rows_per_class_weights, i < count ? row + i : row) * width + j];
      }
      columns.class_weights.column[j] =
          shared ? Vector(rows.class_weights[first * width + j]) : Step<float>::load(of_lanes);
    }
  }

  // Of every label there is: f(label).
  template <class Body>
  JAXLOSS_INLINE void for_each_label(Body body) {
    if constexpr (by_index) {
      body(label);
      if (has_second) body(second);
    }
  }
  template <class Body>
  JAXLOSS_INLINE Vector sum_of_labels(Body body) {
    Vector total(0);
    for_each_label([&](LabelLanes& each) JAXLOSS_IN_LOOP { total = total + select(each.held, body(each), Vector(0)); });
    return total;
  }
  JAXLOSS_INLINE Vector label_target(const LabelLanes& each) const {
    if (!has_class_weights) return hard * each.share;
    Vector weight(0);
    for (int64_t j = 0; j < width; j++) weight = select(each.is(j), class_weight(j), weight);
    return hard * each.share * weight;
  }

  // Logits as options make them but for what they make of labels; −∞ for classes that do not count.
  JAXLOSS_INLINE void scale() {
    const Vector softcap = of(rows.softcap), inverse_softcap = Vector(1) / softcap;
    for (int64_t j = 0; j < width; j++) {
      Vector x = z.column[j];
      if (capped) {
        const TangentAndSlope<Vector> cap(x * inverse_softcap);
        x = softcap * cap.tangent;
        if (wants_gradient) columns.slopes.column[j] = cap.slope();
      }
      x = x * inverse_temperature;
      z.column[j] = counts_classes ? select(counted(j), x, Vector(-__builtin_inf())) : x;
    }
    find_labels();
  }
  JAXLOSS_INLINE void find_labels() {
    for_each_label([&](LabelLanes& each) JAXLOSS_IN_LOOP {
      for (int64_t j = 0; j < width; j++) each.logit = select(each.is(j), z.column[j], each.logit);
    });
  }
  JAXLOSS_INLINE void move_labels() {
    const Vector margin = of(rows.margin) * inverse_temperature;
    for (int64_t j = 0; j < width; j++) {
      const Integers is_label = label.is(j) | (has_second ? second.is(j) : Integers(0));
      z.column[j] = select(is_label, z.column[j] - margin, z.column[j]);
    }
    find_labels();
  }

  // Results of rows that are out are written as these are.
  JAXLOSS_INLINE void store_order(Integers out) {
    Integers best(-1), before(0);
    Vector largest(0);
    for (int64_t j = 0; j < width; j++) {
      const Vector x = z.column[j];
      Integers better = (x > largest) | ((best < Integers(0)) & (x == x));
      if (counts_classes) better = better & counted(j);
      best = select(better, Integers(static_cast<int32_t>(j)), best);
      largest = select(better, x, largest);
      if constexpr (by_index) {
        const Integers earlier = Integers(static_cast<int32_t>(j)) < label.index;
        before = before - ((x > label.logit) | ((x == label.logit) & earlier));
      }
    }
    const Integers none(static_cast<int32_t>(rows.smoothed_classes));
    const Integers first = select(best < Integers(0), Integers(0), best);
    store_lanes(rows.predicted + row, select(out, Integers(-1), first), count);
    store_lanes(rows.rank + row, by_index ? select(out, none, select(label.held, before, none)) : none, count);
  }

  // Σ of the targets and of the loss of all classes, and of what probabilities alone make of it. The targets take the
  // place of the probabilities.
  struct Sums {
    Vector total, loss, nll;
  };
  JAXLOSS_INLINE Sums sums_of_targets(Vector max, Vector log_sum) {
    Vector total[3];
    sums_over_classes(width, total, [&](int64_t j, Vector(&values)[3]) JAXLOSS_IN_LOOP {
      const Vector nll = log_sum - (z.column[j] - max);
      values[2] = Vector(0);
      Vector a = select(z.column[j] == Vector(-__builtin_inf()), Vector(0), smooth);
      if constexpr (!by_index) {
        Vector p = columns.probabilities.column[j];
        if (counts_classes) p = select(counted(j), p, Vector(0));
        values[2] = weighted(p, nll);
        a = a + hard * p;
      }
      if (has_class_weights) a = a * class_weight(j);
      columns.probabilities.column[j] = a;
      values[0] = a;
      values[1] = weighted(a, at_most(nll, Vector(rows.ceiling)));
    });
    return {total[0], total[1], total[2]};
  }

  // exp(z − max) becomes the gradient. `beyond_labels`: what of the total no label's target is, if that is known.
  JAXLOSS_INLINE void set_gradient(Vector max, Vector log_sum, Integers sure, Vector softmax, Vector total,
                                   Vector weight, Integers nothing, const Vector* beyond_labels,
                                   Vector mean = Vector(0)) {
    const bool has_stats = rows.of_lse;  // then the weight of the loss is no factor of all
    const Vector factor = has_stats ? inverse_temperature : weight * inverse_temperature;
    const Vector of_all = softmax * total, zero(0);
    const StatsWeights<Vector> of_stats{has_stats ? known(rows.of_lse) : zero,
                                        has_stats ? known(rows.of_entropy) : zero, mean};
    Vector missing[2] = {zero, zero};
    Vector added[2] = {zero, zero};
    for_each_label([&](LabelLanes& each) JAXLOSS_IN_LOOP {
      const bool which = &each == &second;
      added[which] = label_target(each);
      missing[which] = exponential_minus_one(each.logit - max - log_sum);
    });
    const Vector of_largest = total * exponential_minus_one(-log_sum);
    for (int64_t j = 0; j < width; j++) {
      const Vector e = columns.exponentials.column[j];
      const Vector a = dense ? columns.probabilities.column[j] : zero;
      Vector result = e * of_all - a;
      if constexpr (by_index) {
        const Integers is_label = label.is(j), is_second = has_second ? second.is(j) : Integers(0);
        const Vector target = a + select(is_label, added[0], zero) + select(is_second, added[1], zero);
        Vector others = total - target;
        if (beyond_labels) {
          others = (*beyond_labels - a) + select(is_label, zero, added[0]) + select(is_second, zero, added[1]);
        }
        if (has_second) {
          result = select(is_second, label_derivative(e * softmax, missing[1], total, target, others), result);
        }
        result = select(is_label, label_derivative(e * softmax, missing[0], total, target, others), result);
      } else {
        result = select((e == Vector(1)) & sure, of_largest + (total - a), result);
      }
      if (has_stats) result = result * weight + e * softmax * of_stats.of(z.column[j] - max);
      result = result * factor;
      if (capped) result = result * columns.slopes.column[j];
      if (counts_classes) result = select(counted(j), result, zero);
      z.column[j] = select(nothing, zero, result);
    }
  }

  JAXLOSS_INLINE void run() {
    const Vector zero(0), nan(__builtin_nan("")), infinity(__builtin_inf());
    const Vector weight = of(rows.row_weight);
    const Integers out = bits<Integers>(weight) == Integers(INT32_MIN);  // the bits of −0.0
    Integers invalid(0);
    for_each_label([&](LabelLanes& each) JAXLOSS_IN_LOOP { invalid = invalid | (each.held == Integers(0)); });
    scale();
    if (rows.predicted) store_order(out);
    if (rows.margin.given()) move_labels();

    Vector max(no_logits<float>().max);
    if (rows.known_max) {
      max = known(rows.known_max);
    } else {
      for (int64_t j = 0; j < width; j++) max = at_least(max, z.column[j]);
    }
    Vector sums[3];  // of those below 1, of those that are 1, and of exp(z − max) · (z − max)
    sums_over_classes(width, sums, [&](int64_t j, Vector(&values)[3]) JAXLOSS_IN_LOOP {
      const Vector z_minus_max = z.column[j] - max, e = exponential_of_negative(z_minus_max);
      const Integers is_largest = e == Vector(1);
      columns.exponentials.column[j] = e;
      values[0] = select(is_largest, zero, e);
      values[1] = select(is_largest, Vector(1), zero);
      values[2] = rows.entropy || rows.of_entropy ? weighted(e, z_minus_max) : zero;
    });
    const Vector below_one = sums[0], largest = sums[1], dot = sums[2];
    if (rows.known_max) {
      const Vector log_sum = known(rows.known_log_sum), total = known(rows.known_total);
      if (dense) sums_of_targets(max, log_sum);
      return set_gradient(max, log_sum, exponential(log_sum) < Vector(2), exponential(-log_sum), total, weight,
                          weight == zero, nullptr);
    }
    const Integers apart = largest > zero;
    const Vector rest = select(apart, below_one + (largest - Vector(1)), below_one), sum = below_one + largest;
    const Vector log_sum = log_of_sum(sum, rest, apart), lse = max + log_sum;
    const Sums of_targets = dense ? sums_of_targets(max, log_sum) : Sums{zero, zero, zero};
    const Vector of_z = rows.z_loss.given() ? of(rows.z_loss) : zero;
    const auto nll_of_labels = [&](Vector ceiling, auto target) JAXLOSS_IN_LOOP {
      return sum_of_labels([&](LabelLanes& each) JAXLOSS_IN_LOOP {
        return weighted(target(each), negative_log_likelihood(log_sum, each.logit - max, ceiling));
      });
    };
    const auto store = [&](float* results, Vector result) JAXLOSS_IN_LOOP {
      if (results) store_lanes(results + row, select(out, zero, result), count);
    };
    const Integers none = invalid | ((log_sum == log_sum) == Integers(0));
    const auto where_valid = [&](Vector result) JAXLOSS_IN_LOOP { return select(none, nan, result); };
    const Vector loss = of_targets.loss + nll_of_labels(Vector(rows.ceiling), [&](LabelLanes& each) JAXLOSS_IN_LOOP {
                          return label_target(each);
                        });
    store(rows.loss, where_valid(loss + weighted(of_z, lse * lse)));
    store(rows.max, max);
    store(rows.log_sum, log_sum);
    if (rows.nll) {
      const Vector nll =
          of_targets.nll + nll_of_labels(infinity, [&](LabelLanes& each) JAXLOSS_IN_LOOP { return each.share; });
      store(rows.nll, where_valid(nll));
    }
    if (rows.entropy) store(rows.entropy, log_sum - dot / sum);
    if (!wants_gradient) return;
    const Vector beyond_labels = of_targets.total + Vector(2) * weighted(of_z, lse);
    const Vector total =
        beyond_labels + sum_of_labels([&](LabelLanes& each) JAXLOSS_IN_LOOP { return label_target(each); });
    const Vector softmax = Vector(1) / sum;
    if (!rows.of_lse) {
      return set_gradient(max, log_sum, sum < Vector(2), softmax, total, weight, (weight == zero) | invalid,
                          &beyond_labels);
    }
    set_gradient(max, log_sum, sum < Vector(2), softmax, total, select(invalid, zero, weight), out, &beyond_labels,
                 dot / sum);
  }
};

template <bool by_index>
__attribute__((noinline)) void narrow_option_rows(const CrossEntropyOptions<float>& rows, const int32_t* index,
                                                  bool wants_gradient, int64_t row, int64_t count,
                                                  OptionColumns& columns) {
  NarrowOptions<by_index>(rows, index, wants_gradient, row, count, columns).run();
}

// The rows [begin, end), if they can be done so; returns the first that is not done.
template <class Logit, class Target>
JAXLOSS_INLINE int64_t all_narrow_option_rows(const CrossEntropyOptionRows<Logit, Target>& rows, int64_t begin,
                                              int64_t end) {
  if constexpr (!std::is_same_v<Logit, double>) {
    if (rows.classes == 0 || rows.classes > kNarrow) return begin;
    constexpr bool by_index = std::is_same_v<Target, ClassIndices>;
    OptionColumns columns;
    const int32_t* index = nullptr;
    if constexpr (by_index) index = rows.target.index;
    for (; begin < end; begin += kLanes) {
      const int64_t count = end - begin < kLanes ? end - begin : kLanes, first = begin * rows.classes;
      load_columns(columns.x, rows.logits + first, count, rows.classes);
      if constexpr (!by_index) {
        load_columns(columns.probabilities, rows.target.probability + first, count, rows.classes);
      }
      narrow_option_rows<by_index>(rows, index, rows.gradient, begin, count, columns);
      if (rows.gradient) store_columns(columns.x, rows.gradient + first, count, rows.classes);
    }
    return end;
  }
  return begin;
}

}  // namespace jaxloss::JAXLOSS_ISA
