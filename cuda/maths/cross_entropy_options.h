// What the options of cross entropy make of one row.
//
// The logits that count are z = softcap · tanh(x / softcap) / temperature of the first `classes` classes; those beyond
// are padding. That of the label is z = (softcap · tanh(x / softcap) − margin) / temperature. The target b of a class
// is its target with smoothing, times the class's weight: b = w · ((1 − ε) · a + ε / K), without ε / K where z is −∞:
// masked classes are not smoothed over. Of class indices, a is `mix` at the label and 1 − `mix` at the second one. The
// loss is Σ b · min(lse(z) − z, −log clip) + z_loss · lse², and with p = softmax(z) its derivative with respect to z is
// (Σ b + 2 · z_loss · lse) · p − b.
#pragma once

#include "maths/cross_entropy.h"
#include "rows.h"

namespace jaxloss {

// What a row's log-sum-exp and entropy, each times a weight, add to the derivative with respect to a scaled logit, over
// its softmax: of_lse − of_entropy · (z − max − mean), where `mean` is Σ softmax · (z − max).
template <class Real>
struct StatsWeights {
  Real of_lse, of_entropy, mean;

  template <class Value>
  JAXLOSS_INLINE Value of(Value z_minus_max) const {
    // Of a masked class a number far below all whose softmax is not 0, for it is taken times 0.
    const Value finite = at_least(z_minus_max, Value(-0x1p60));
    return Value(of_lse) - Value(of_entropy) * (finite - Value(mean));
  }
};

// The softmax p of a label's class times the total T of its row, less the target b of the class, from `missing`, p − 1,
// and `others`, T − b: as T (p − 1) + (T − b), in which nothing cancels of a label that is nearly certain. Where p is
// less than a half, and most of T is not b's, the two would be what cancels.
template <class Value>
JAXLOSS_INLINE Value label_derivative(Value p, Value missing, Value total, Value target, Value others) {
  const Value exact = total * missing + others;
  const Value of_small = select(absolute(target + target) < absolute(total), p * total - target, exact);
  return select(missing < Value(-0.5), of_small, exact);
}

template <class Real>
struct RowObjective {
  int64_t classes;
  bool capped;
  bool moves_label;  // the logit of a label is not what the same class would have without being one
  Real softcap, inverse_softcap, margin, temperature, inverse_temperature;
  Real hard, smooth;          // 1 − ε, ε / K
  const Real* class_weights;  // or null
  Real z_loss;
  int64_t label[2];  // outside [0, classes): nothing here
  Real share[2];     // what of the target each label has
  bool valid;        // false: a label is no class

  template <class Logit, class Target>
  JAXLOSS_INLINE RowObjective(const CrossEntropyOptionRows<Logit, Target>& rows, int64_t row)
      : classes(rows.classes_of(row)),
        capped(rows.softcap.given()),
        moves_label(rows.margin.given()),
        softcap(rows.softcap.of(row)),
        inverse_softcap(1 / softcap),
        margin(rows.margin.of(row)),
        temperature(rows.temperature.of(row)),
        inverse_temperature(1 / temperature),
        hard(1 - rows.label_smoothing.of(row)),
        smooth(rows.label_smoothing.of(row) / static_cast<Real>(rows.smoothed_classes)),
        class_weights(rows.class_weights
                          ? rows.class_weights + set_of_row(rows.rows_per_class_weights, row) * rows.classes
                          : nullptr),
        z_loss(rows.z_loss.of(row)) {
    if constexpr (std::is_same_v<Target, ClassIndices>) {
      take_labels(rows, row, rows.target.index[row]);
    } else {
      label[0] = label[1] = -1;
      share[0] = share[1] = 0;
      valid = true;
    }
  }

  // Those of a row, of which the first is given.
  template <class Rows>
  JAXLOSS_INLINE void take_labels(const Rows& rows, int64_t row, int64_t first) {
    valid = true;
    const Real mix = rows.mix.of(row);
    set_label(0, first, mix);
    label[1] = -1;
    share[1] = 0;
    if (rows.second_label.given()) set_label(1, rows.second_label.of(row), 1 - mix);
  }

  template <class Value>
  JAXLOSS_INLINE Value logit(Value x) const {
    return softcapped(x) * Value(inverse_temperature);
  }
  // Of the class of a label.
  template <class Value>
  JAXLOSS_INLINE Value label_logit(Value x) const {
    return (softcapped(x) - Value(margin)) * Value(inverse_temperature);
  }

  // dz / dx, of which 1 − tanh² would lose the digits of a small one.
  template <class Value>
  JAXLOSS_INLINE Value slope(Value x) const {
    if (!capped) return Value(inverse_temperature);
    const Value size = absolute(x * Value(inverse_softcap)), decay = exponential(-(size + size));
    const Value inverse = Value(1) / (Value(1) + decay);
    return Value(4) * decay * inverse * inverse * Value(inverse_temperature);
  }

  JAXLOSS_INLINE Real class_weight(int64_t i) const { return class_weights ? class_weights[i] : Real(1); }
  JAXLOSS_INLINE bool holds(int which) const { return label[which] >= 0 && label[which] < classes; }
  // The target that a label's class has for being the label.
  JAXLOSS_INLINE Real label_target(int which) const { return hard * share[which] * class_weight(label[which]); }

 private:
  template <class Value>
  JAXLOSS_INLINE Value softcapped(Value x) const {
    return capped ? Value(softcap) * hyperbolic_tangent(x * Value(inverse_softcap)) : x;
  }
  JAXLOSS_INLINE void set_label(int which, int64_t index, Real of_target) {
    label[which] = index;
    share[which] = of_target;
    valid = valid && holds(which);
  }
};

}  // namespace jaxloss
