// Cross entropy of rows of few classes on the CPU: as many rows at once as a vector has lanes, a lane a row, so that no
// lane is idle and nothing is reduced across lanes.
#pragma once

#include "cpu/row_weights.h"
#include "cpu/transpose.h"
#include "maths/cross_entropy.h"
#include "rows.h"

namespace jaxloss::JAXLOSS_ISA {

// The most classes (64 with AVX2, that this was measured with). At 65 a row at a time takes a sixth longer for arrays
// in the cache, from 100 on less; of larger arrays, turned rows are the slower ones to store.
constexpr int64_t kNarrow = (4 << 10) / sizeof(Vector);
using ClassColumns = Columns<kNarrow>;

// The sums of what `body(class, values)` gives, in blocks: those of many classes are as accurate as those of a few.
template <int n, class Body>
JAXLOSS_INLINE void sums_over_classes(int64_t classes, Vector (&total)[n], Body body) {
  constexpr int64_t kBlock = 16;
  for (Vector& each : total) each = Vector(0);
  for (int64_t j = 0; j < classes;) {
    Vector sums[n], values[n];
    for (Vector& each : sums) each = Vector(0);
    for (const int64_t end = j + kBlock < classes ? j + kBlock : classes; j < end; j++) {
      body(j, values);
      for (int k = 0; k < n; k++) sums[k] = sums[k] + values[k];
    }
    for (int k = 0; k < n; k++) total[k] = total[k] + sums[k];
  }
}
template <class Body>
JAXLOSS_INLINE Vector sum_over_classes(int64_t classes, Body body) {
  Vector total[1];
  sums_over_classes(classes, total, [&](int64_t j, Vector(&values)[1]) JAXLOSS_IN_LOOP { values[0] = body(j); });
  return total[0];
}

// The target of these rows.
struct IndexColumns {
  Integers index;

  JAXLOSS_INLINE IndexColumns(ClassIndices target, int64_t row, int64_t) {
    std::memcpy(&index, target.index + row, sizeof(index));
  }
  JAXLOSS_INLINE Integers is(int64_t j) const { return index == Integers(static_cast<int32_t>(j)); }
  // Where a row's loss is NaN.
  JAXLOSS_INLINE Integers invalid(int64_t classes) const {
    return (index < Integers(0)) | (index >= Integers(static_cast<int32_t>(classes)));
  }
  JAXLOSS_INLINE Vector sum(int64_t classes) const { return select(invalid(classes), Vector(0), Vector(1)); }
};
struct ProbabilityColumns {
  ClassColumns columns;

  template <class Stored>
  JAXLOSS_INLINE ProbabilityColumns(ClassProbabilities<Stored> target, int64_t row, int64_t classes) {
    columns.load(target.probability + row * classes, classes);
  }
  JAXLOSS_INLINE Vector operator()(int64_t j) const { return columns.column[j]; }
  JAXLOSS_INLINE Vector sum(int64_t classes) const {
    return sum_over_classes(classes, [&](int64_t j) { return columns.column[j]; });
  }
  JAXLOSS_INLINE Vector loss(const ClassColumns& x, int64_t classes, Vector max, Vector log_sum, Vector ceiling) const {
    return sum_over_classes(classes, [&](int64_t j) {
      return weighted(columns.column[j], negative_log_likelihood(log_sum, x.column[j] - max, ceiling));
    });
  }
};
JAXLOSS_INLINE IndexColumns target_columns(ClassIndices target, int64_t row, int64_t classes) {
  return {target, row, classes};
}
template <class Stored>
JAXLOSS_INLINE ProbabilityColumns target_columns(ClassProbabilities<Stored> target, int64_t row, int64_t classes) {
  return {target, row, classes};
}

// Those of the next `count` rows; lanes beyond have none.
JAXLOSS_INLINE Vector weights_of_lanes(RowWeights<float>& weights, int64_t count) {
  float of_lanes[kLanes];
  for (int i = 0; i < kLanes; i++) of_lanes[i] = i < count ? weights.next() : -0.0f;
  return Step<float>::load(of_lanes);
}

// What is known of rows when their logits have been gone along.
struct NarrowSums {
  Vector max, sum, log_sum, loss;
  Vector of_label;  // the logit of the label, where there are labels
};

// The label is left out of the sum of exponentials that the logarithm of a confident row is made of.
JAXLOSS_INLINE NarrowSums narrow_sums(const IndexColumns& target, const ClassColumns& x, int64_t classes,
                                      Vector ceiling, ClassColumns& exponentials) {
  NarrowSums sums;
  sums.max = Vector(no_logits<float>().max);
  sums.of_label = Vector(0);
  for (int64_t j = 0; j < classes; j++) {
    sums.max = at_least(sums.max, x.column[j]);
    sums.of_label = select(target.is(j), x.column[j], sums.of_label);
  }
  const Vector rest = sum_over_classes(classes, [&](int64_t j) {
    exponentials.column[j] = exponential_of_negative(x.column[j] - sums.max);
    return select(target.is(j), Vector(0), exponentials.column[j]);
  });
  const Integers invalid = target.invalid(classes);
  const Vector below_max = sums.of_label - sums.max;
  sums.sum = rest + select(invalid, Vector(0), exponential_of_negative(below_max));
  sums.log_sum = log_of_sum(sums.sum, rest, select(invalid, Vector(1), below_max) == Vector(0));
  const Vector nll = negative_log_likelihood(sums.log_sum, below_max, ceiling);
  sums.loss = select(invalid, Vector(__builtin_nan("")), nll);
  return sums;
}
// The largest logit is left out, if no other is as large. An infinite one is not: its exponential is NaN.
JAXLOSS_INLINE NarrowSums narrow_sums(const ProbabilityColumns& target, const ClassColumns& x, int64_t classes,
                                      Vector ceiling, ClassColumns& exponentials) {
  NarrowSums sums;
  sums.max = Vector(no_logits<float>().max);
  for (int64_t j = 0; j < classes; j++) sums.max = at_least(sums.max, x.column[j]);
  Vector largest(0);  // how many there are
  const Vector rest = sum_over_classes(classes, [&](int64_t j) {
    exponentials.column[j] = exponential_of_negative(x.column[j] - sums.max);
    const Integers is_largest = exponentials.column[j] == Vector(1);
    largest = largest + select(is_largest, Vector(1), Vector(0));
    return select(is_largest, Vector(0), exponentials.column[j]);
  });
  sums.sum = rest + largest;
  sums.log_sum = log_of_sum(sums.sum, rest, largest == Vector(1));
  const Vector loss = target.loss(x, classes, sums.max, sums.log_sum, ceiling);
  sums.loss = select(sums.log_sum == sums.log_sum, loss, sums.log_sum);
  return sums;
}

// gradient = (softmax · target_sum − target) · weight, zeros where `nothing`; `columns` are the exponentials, of which
// the softmax is `scale`.
template <class Logit>
JAXLOSS_INLINE void narrow_gradient(ClassColumns& columns, const IndexColumns& target, int64_t classes, Vector scale,
                                    Vector target_sum, Vector label_log_probability, Vector, Vector weight,
                                    Logit* gradient) {
  const Integers nothing = (weight == Vector(0)) | (target_sum == Vector(0));
  const Vector factor = select(nothing, Vector(0), scale * weight);
  const Vector of_label = exponential_minus_one(label_log_probability) * weight;
  for (int64_t j = 0; j < classes; j++) {
    const Vector of_class = select(target.is(j), of_label, columns.column[j] * factor);
    columns.column[j] = select(nothing, Vector(0), of_class);
  }
  columns.store(gradient, classes);
}
template <class Logit>
JAXLOSS_INLINE void narrow_gradient(ClassColumns& columns, const ProbabilityColumns& target, int64_t classes,
                                    Vector scale, Vector target_sum, Vector, Vector log_sum, Vector weight,
                                    Logit* gradient) {
  const Integers nothing = weight == Vector(0);
  const Integers sure = exponential(log_sum) < Vector(2);
  const Vector one(1), of_all = target_sum * scale, of_largest = target_sum * exponential_minus_one(-log_sum);
  for (int64_t j = 0; j < classes; j++) {
    const Vector e = columns.column[j], t = target.columns.column[j];
    const Vector difference = select((e == one) & sure, of_largest + (target_sum - t), e * of_all - t);
    columns.column[j] = select(nothing, Vector(0), difference * weight);
  }
  columns.store(gradient, classes);
}

// Rows [row, row + kLanes). Not inlined: one copy, that rounds every row alike.
template <class Logit, class Target>
__attribute__((noinline)) void narrow_rows(const CrossEntropyRows<Logit, Target>& rows, int64_t row, Vector weight) {
  const Vector zero(0);
  const int64_t classes = rows.classes;
  const Integers out = bits<Integers>(weight) == Integers(static_cast<int32_t>(0x80000000u));  // the bits of −0.0

  ClassColumns x, exponentials;
  x.load(rows.logits + row * classes, classes);
  const auto target = target_columns(rows.target, row, classes);
  const NarrowSums sums = narrow_sums(target, x, classes, Vector(rows.ceiling), exponentials);
  Step<float>::store(rows.loss + row, select(out, zero, sums.loss));
  if (rows.max) Step<float>::store(rows.max + row, select(out, zero, sums.max));
  if (rows.log_sum) Step<float>::store(rows.log_sum + row, select(out, zero, sums.log_sum));
  if (rows.gradient) {
    narrow_gradient(exponentials, target, classes, Vector(1) / sums.sum, target.sum(classes),
                    sums.of_label - sums.max - sums.log_sum, sums.log_sum, weight, rows.gradient + row * classes);
  }
}
template <class Logit, class Target>
__attribute__((noinline)) void narrow_rows(const CrossEntropyGradientRows<Logit, Target>& rows, int64_t row,
                                           Vector weight) {
  const int64_t classes = rows.classes;
  ClassColumns columns;
  columns.load(rows.logits + row * classes, classes);
  const auto target = target_columns(rows.target, row, classes);
  const Vector max = Step<float>::load(rows.max + row), target_sum = Step<float>::load(rows.target_sum + row);
  const Vector log_sum = Step<float>::load(rows.log_sum + row);
  Vector of_label(0);
  for (int64_t j = 0; j < classes; j++) {
    const Vector below_max = columns.column[j] - max;
    if constexpr (std::is_same_v<Target, ClassIndices>) of_label = select(target.is(j), below_max, of_label);
    columns.column[j] = exponential_of_negative(below_max);
  }
  narrow_gradient(columns, target, classes, exponential(-log_sum), target_sum, of_label - log_sum, log_sum, weight,
                  rows.gradient + row * classes);
}
template <class Target>
struct PaddedTarget;
template <>
struct PaddedTarget<ClassIndices> {
  Padded<int32_t> indices;
  JAXLOSS_INLINE ClassIndices filled(ClassIndices from, int64_t row, int64_t count, int64_t) {
    return {indices.filled(from.index + row, count)};
  }
};
template <class Stored>
struct PaddedTarget<ClassProbabilities<Stored>> {
  Padded<Stored, kNarrow> probabilities;
  JAXLOSS_INLINE ClassProbabilities<Stored> filled(ClassProbabilities<Stored> from, int64_t row, int64_t count,
                                                   int64_t classes) {
    return {probabilities.filled(from.probability + row * classes, count * classes)};
  }
};

// What all rows have.
template <class Rows>
struct PaddedRows;
template <template <class, class> class Rows, class Logit, class Target>
struct PaddedRows<Rows<Logit, Target>> {
  Padded<Logit, kNarrow> logits, gradient;
  PaddedTarget<Target> target;

  JAXLOSS_INLINE void fill(Rows<Logit, Target>& rows, int64_t row, int64_t count) {
    rows.target = target.filled(rows.target, row, count, rows.classes);
    rows.logits = logits.filled(rows.logits + row * rows.classes, count * rows.classes);
    if (rows.gradient) rows.gradient = gradient.numbers;
  }
  JAXLOSS_INLINE void give_gradient_back(const Rows<Logit, Target>& rows, int64_t row, int64_t count) const {
    if (rows.gradient) gradient.give_back(rows.gradient + row * rows.classes, count * rows.classes);
  }
};

template <class Rows>
struct LastRows;
template <class Logit, class Target>
struct LastRows<CrossEntropyRows<Logit, Target>> {
  using Rows = CrossEntropyRows<Logit, Target>;
  PaddedRows<Rows> padded;
  Padded<float> loss, max, log_sum;

  JAXLOSS_INLINE Rows filled(Rows rows, int64_t row, int64_t count) {
    padded.fill(rows, row, count);
    rows.loss = loss.numbers;
    if (rows.max) rows.max = max.numbers;
    if (rows.log_sum) rows.log_sum = log_sum.numbers;
    return rows;
  }
  JAXLOSS_INLINE void give_back(const Rows& rows, int64_t row, int64_t count) const {
    loss.give_back(rows.loss + row, count);
    if (rows.max) max.give_back(rows.max + row, count);
    if (rows.log_sum) log_sum.give_back(rows.log_sum + row, count);
    padded.give_gradient_back(rows, row, count);
  }
};
template <class Logit, class Target>
struct LastRows<CrossEntropyGradientRows<Logit, Target>> {
  using Rows = CrossEntropyGradientRows<Logit, Target>;
  PaddedRows<Rows> padded;
  Padded<float> max, log_sum, target_sum;

  JAXLOSS_INLINE Rows filled(Rows rows, int64_t row, int64_t count) {
    padded.fill(rows, row, count);
    rows.max = max.filled(rows.max + row, count);
    rows.log_sum = log_sum.filled(rows.log_sum + row, count);
    rows.target_sum = target_sum.filled(rows.target_sum + row, count);
    return rows;
  }
  JAXLOSS_INLINE void give_back(const Rows& rows, int64_t row, int64_t count) const {
    padded.give_gradient_back(rows, row, count);
  }
};

template <class Rows>
JAXLOSS_INLINE void last_narrow_rows(const Rows& rows, int64_t row, int64_t count, Vector weight) {
  LastRows<Rows> last;
  narrow_rows(last.filled(rows, row, count), 0, weight);
  last.give_back(rows, row, count);
}

// The rows [begin, end), if they can be done so; returns the first that is not done.
template <class Rows>
JAXLOSS_INLINE int64_t all_narrow_rows(const Rows& rows, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<typename Rows::Real, float>) {
    if (rows.classes > 0 && rows.classes <= kNarrow) {
      RowWeights<float> weights(rows, begin);
      for (; begin < end; begin += kLanes) {
        const int64_t count = end - begin < kLanes ? end - begin : kLanes;
        const Vector weight = weights_of_lanes(weights, count);
        if (count == kLanes) {
          narrow_rows(rows, begin, weight);
        } else {
          last_narrow_rows(rows, begin, count, weight);
        }
      }
      return end;
    }
  }
  return begin;
}

}  // namespace jaxloss::JAXLOSS_ISA
