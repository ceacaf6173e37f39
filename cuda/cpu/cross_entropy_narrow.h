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

// The sum of `body(class)`, in blocks: that of many classes is as accurate as that of a few.
template <class Body>
JAXLOSS_INLINE Vector sum_over_classes(int64_t classes, Body body) {
  constexpr int64_t kBlock = 16;
  Vector total(0);
  for (int64_t j = 0; j < classes;) {
    Vector sum(0);
    for (const int64_t end = j + kBlock < classes ? j + kBlock : classes; j < end; j++) sum = sum + body(j);
    total = total + sum;
  }
  return total;
}

// The target of these rows.
struct IndexColumns {
  Integers index;

  JAXLOSS_INLINE IndexColumns(ClassIndices target, int64_t row, int64_t) {
    std::memcpy(&index, target.index + row, sizeof(index));
  }
  // The probability of class j in each row.
  JAXLOSS_INLINE Vector operator()(int64_t j) const { return select(is(j), Vector(1), Vector(0)); }
  // Where a row's loss is NaN.
  JAXLOSS_INLINE Integers invalid(int64_t classes) const {
    return (index < Integers(0)) | (index >= Integers(static_cast<int32_t>(classes)));
  }
  JAXLOSS_INLINE Vector sum(int64_t classes) const { return select(invalid(classes), Vector(0), Vector(1)); }
  JAXLOSS_INLINE Vector loss(const ClassColumns& x, int64_t classes, Vector max, Vector log_sum, Vector ceiling) const {
    Vector of_label(0);
    for (int64_t j = 0; j < classes; j++) of_label = select(is(j), x.column[j], of_label);
    const Vector loss = negative_log_likelihood(log_sum, of_label - max, ceiling);
    return select(invalid(classes), Vector(__builtin_nan("")), loss);
  }

 private:
  JAXLOSS_INLINE Integers is(int64_t j) const { return index == Integers(static_cast<int32_t>(j)); }
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

JAXLOSS_INLINE Vector weights_of_lanes(RowWeights<float>& weights) {
  float of_lanes[kLanes];
  for (int i = 0; i < kLanes; i++) of_lanes[i] = weights.next();
  return Step<float>::load(of_lanes);
}

// gradient = (exp(x − max) · scale − target) · weight, zeros where `nothing`; `columns` are the exponentials.
template <class Logit, class Target>
JAXLOSS_INLINE void narrow_gradient(ClassColumns& columns, const Target& target, int64_t classes, Vector scale,
                                    Vector weight, Integers nothing, Logit* gradient) {
  for (int64_t j = 0; j < classes; j++) {
    const Vector of_class = (columns.column[j] * scale - target(j)) * weight;
    columns.column[j] = select(nothing, Vector(0), of_class);
  }
  columns.store(gradient, classes);
}

// Rows [row, row + kLanes).
template <class Logit, class Target>
JAXLOSS_INLINE void narrow_rows(const CrossEntropyRows<Logit, Target>& rows, int64_t row, Vector weight) {
  const Vector zero(0);
  const int64_t classes = rows.classes;
  const Integers out = bits<Integers>(weight) == Integers(static_cast<int32_t>(0x80000000u));  // the bits of −0.0

  ClassColumns x;
  x.load(rows.logits + row * classes, classes);
  const auto target = target_columns(rows.target, row, classes);
  Vector max(no_logits<float>().max);
  for (int64_t j = 0; j < classes; j++) max = at_least(max, x.column[j]);
  ClassColumns exponentials;
  const Vector sum = sum_over_classes(
      classes, [&](int64_t j) { return exponentials.column[j] = exponential_of_negative(x.column[j] - max); });
  const Vector log_sum = logarithm(sum);
  const Vector loss = target.loss(x, classes, max, log_sum, Vector(rows.ceiling));
  Step<float>::store(rows.loss + row, select(out, zero, loss));
  if (rows.max) Step<float>::store(rows.max + row, select(out, zero, max));
  if (rows.log_sum) Step<float>::store(rows.log_sum + row, select(out, zero, log_sum));
  if (rows.gradient) {
    const Vector target_sum = target.sum(classes);
    Integers nothing = weight == zero;
    if constexpr (std::is_same_v<Target, ClassIndices>) nothing = nothing | (target_sum == zero);
    narrow_gradient(exponentials, target, classes, target_sum / sum, weight, nothing, rows.gradient + row * classes);
  }
}
template <class Logit, class Target>
JAXLOSS_INLINE void narrow_rows(const CrossEntropyGradientRows<Logit, Target>& rows, int64_t row, Vector weight) {
  const int64_t classes = rows.classes;
  ClassColumns columns;
  columns.load(rows.logits + row * classes, classes);
  const auto target = target_columns(rows.target, row, classes);
  const Vector max = Step<float>::load(rows.max + row), target_sum = Step<float>::load(rows.target_sum + row);
  for (int64_t j = 0; j < classes; j++) columns.column[j] = exponential_of_negative(columns.column[j] - max);
  Integers nothing = weight == Vector(0);
  if constexpr (std::is_same_v<Target, ClassIndices>) nothing = nothing | (target_sum == Vector(0));
  const Vector scale = target_sum * exponential(-Step<float>::load(rows.log_sum + row));
  narrow_gradient(columns, target, classes, scale, weight, nothing, rows.gradient + row * classes);
}

// As many of the rows [begin, end) as can be done so; returns the first that cannot.
template <class Rows>
JAXLOSS_INLINE int64_t all_narrow_rows(const Rows& rows, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<typename Rows::Real, float>) {
    if (rows.classes > 0 && rows.classes <= kNarrow) {
      for (RowWeights<float> weights(rows, begin); begin + kLanes <= end; begin += kLanes) {
        narrow_rows(rows, begin, weights_of_lanes(weights));
      }
    }
  }
  return begin;
}

}  // namespace jaxloss::JAXLOSS_ISA
