// Cross entropy of rows of few classes on the CPU: as many rows at once as a vector has lanes, a lane a row, so that no
// lane is idle and nothing is reduced across lanes.
#pragma once

#include "cpu/simd.h"
#include "maths/cross_entropy.h"
#include "rows.h"

namespace jaxloss::JAXLOSS_ISA {

constexpr int64_t kNarrow = 64;  // classes; beyond, turning rows costs more than the idle lanes of their ends

// `kLanes` rows of few classes, which lie one after the other in memory, turned so that a vector holds one class of
// each.
struct Columns {
  Vector column[kNarrow];

  template <class Stored>
  JAXLOSS_INLINE void load(const Stored* rows, int64_t classes) {
    float flat[kNarrow * kLanes];
    for (int64_t i = 0; i < classes; i++) Step<float>::store(flat + i * kLanes, Step<Stored>::load(rows + i * kLanes));
    for (int64_t j = 0; j < classes; j++) {
      for (int64_t k = 0; k < kLanes; k++) column[j].lanes[k] = flat[k * classes + j];
    }
  }

  template <class Stored>
  JAXLOSS_INLINE void store(Stored* rows, int64_t classes) const {
    float flat[kNarrow * kLanes];
    for (int64_t j = 0; j < classes; j++) {
      for (int64_t k = 0; k < kLanes; k++) flat[k * classes + j] = column[j].lanes[k];
    }
    for (int64_t i = 0; i < classes; i++) Step<Stored>::store(rows + i * kLanes, Step<float>::load(flat + i * kLanes));
  }
};

// The target of these rows: for a class, its probability in each row.
struct IndexColumns {
  IntLanes index;
  JAXLOSS_INLINE IndexColumns(ClassIndices target, int64_t row, int64_t) {
    std::memcpy(&index, target.index + row, sizeof(index));
  }
  JAXLOSS_INLINE Vector operator()(int64_t j) const {
    return select(index == static_cast<int32_t>(j), Vector(1), Vector(0));
  }
  // Where the row's loss is NaN and its gradient 0.
  JAXLOSS_INLINE IntLanes invalid(int64_t classes) const {
    return (index < 0) | (index >= static_cast<int32_t>(classes));
  }
};
struct ProbabilityColumns {
  Columns columns;
  template <class Stored>
  JAXLOSS_INLINE ProbabilityColumns(ClassProbabilities<Stored> target, int64_t row, int64_t classes) {
    columns.load(target.probability + row * classes, classes);
  }
  JAXLOSS_INLINE Vector operator()(int64_t j) const { return columns.column[j]; }
  JAXLOSS_INLINE IntLanes invalid(int64_t) const { return IntLanes{}; }
};
JAXLOSS_INLINE IndexColumns target_columns(ClassIndices target, int64_t row, int64_t classes) {
  return {target, row, classes};
}
template <class Stored>
JAXLOSS_INLINE ProbabilityColumns target_columns(ClassProbabilities<Stored> target, int64_t row, int64_t classes) {
  return {target, row, classes};
}

// log s for a vector of sums; a row's logarithm is a small part of its work.
JAXLOSS_INLINE Vector logarithms(Vector x) {
  for (int64_t k = 0; k < kLanes; k++) x.lanes[k] = logarithm(x.lanes[k]);
  return x;
}

// Rows [row, row + kLanes).
template <class Logit, class Target>
JAXLOSS_INLINE void narrow_rows(const CrossEntropyRows<Logit, Target>& rows, int64_t row) {
  const Vector zero(0);
  Vector weight;
  for (int64_t k = 0; k < kLanes; k++) weight.lanes[k] = rows.weight_of(row + k);
  const IntLanes out = (bits<IntLanes>(weight.lanes) == static_cast<int32_t>(0x80000000u));  // the bits of −0.0

  Columns x;
  x.load(rows.logits + row * rows.classes, rows.classes);
  Vector max(no_logits<float>().max);
  for (int64_t j = 0; j < rows.classes; j++) max = at_least(max, x.column[j]);
  Columns exponentials;
  Vector sum = zero;
  for (int64_t j = 0; j < rows.classes; j++) {
    exponentials.column[j] = exponential(x.column[j] - max);
    sum = sum + exponentials.column[j];
  }
  const Vector log_sum = logarithms(sum);

  const auto target = target_columns(rows.target, row, rows.classes);
  Vector loss = zero, target_sum = zero;
  for (int64_t j = 0; j < rows.classes; j++) {
    loss = loss + weighted(target(j), negative_log_likelihood(log_sum, x.column[j] - max, Vector(rows.ceiling)));
    target_sum = target_sum + target(j);
  }
  const IntLanes invalid = target.invalid(rows.classes);
  loss = select(invalid, Vector(__builtin_nan("")), loss);
  Step<float>::store(rows.loss + row, select(out, zero, loss));
  if (rows.max) Step<float>::store(rows.max + row, select(out, zero, max));
  if (rows.log_sum) Step<float>::store(rows.log_sum + row, select(out, zero, log_sum));

  if (rows.gradient) {
    const IntLanes nothing = (weight == zero) | invalid;
    const Vector scale = target_sum / sum;
    for (int64_t j = 0; j < rows.classes; j++) {
      exponentials.column[j] = select(nothing, zero, (exponentials.column[j] * scale - target(j)) * weight);
    }
    exponentials.store(rows.gradient + row * rows.classes, rows.classes);
  }
}

// As many of the rows [begin, end) as can be done so; returns the first that cannot.
template <class Logit, class Target>
JAXLOSS_INLINE int64_t all_narrow_rows(const CrossEntropyRows<Logit, Target>& rows, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<Accumulator<Logit>, float>) {
    if (rows.classes > 0 && rows.classes <= kNarrow) {
      for (; begin + kLanes <= end; begin += kLanes) narrow_rows(rows, begin);
    }
  }
  return begin;
}

}  // namespace jaxloss::JAXLOSS_ISA
