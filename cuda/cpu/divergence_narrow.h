// Divergences of distributions over few classes on the CPU: as many rows at once as a vector has lanes, a lane a row,
// as in `cross_entropy_narrow.h`. What is computed does not depend on the types that are stored: there is one copy for
// each divergence from each kind of teacher.
#pragma once

#include "cpu/row_lanes.h"
#include "cpu/transpose.h"
#include "maths/cross_entropy.h"
#include "maths/divergence.h"
#include "rows.h"

namespace jaxloss::JAXLOSS_ISA {

constexpr int64_t kMostDivergenceClasses = 128;
using DivergenceClasses = Columns<kMostDivergenceClasses>;

// Up to how many classes a lane a row is quicker than a row at a time. The divergence of probabilities that needs no
// exponential of its own is the one for which that depends on the vectors: with 64 classes it takes a fifth less time
// so with AVX2, with 80 a tenth more; with AVX-512 no more with 128; with SSE2 a fifth less with 33, a twentieth more
// with 48. Of the others rows of 512 classes would still take a sixth to a half less; but of those a lane a row makes a
// batch of a few as slowly as one of as many as it has lanes.
template <class Divergence, class Teacher>
constexpr int64_t most_narrow_classes() {
  constexpr bool little_work = std::is_same_v<Divergence, KullbackLeibler> && !Teacher::normalised;
  constexpr int64_t most = little_work ? 4 * kLanes : kMostDivergenceClasses;
  static_assert(most <= kMostDivergenceClasses);
  return most;
}

// What is known of all classes. `p` and `q` are first exponentials, then the probabilities; `x` becomes the gradient.
struct DivergenceColumns {
  DivergenceClasses x, teacher, p, q;
};

// What rows have one number of each: those that they are given, and their results.
struct DivergenceLanes {
  Vector weight, scale, parameter;
  Vector loss, max, log_sum, teacher_max, teacher_log_sum, total;
};

// The sums of some values of each class: in float over `kClassesPerSum`, then in doubles.
template <int n, class Body>
JAXLOSS_INLINE void wide_sums_over_classes(int64_t classes, Vector (&total)[n], Body body) {
  constexpr int64_t kClassesPerSum = 4;
  LaneSums wide[n];
  for (int64_t j = 0; j < classes;) {
    Vector sums[n], values[n];
    body(j++, sums);
    for (const int64_t end = j + kClassesPerSum - 1 < classes ? j + kClassesPerSum - 1 : classes; j < end; j++) {
      body(j, values);
      for (int k = 0; k < n; k++) sums[k] = sums[k] + values[k];
    }
    for (int k = 0; k < n; k++) wide[k].add(sums[k]);
  }
  for (int k = 0; k < n; k++) total[k] = wide[k].rounded();
}

// As that of `maths/divergence.h`, which branches.
JAXLOSS_INLINE Vector difference_of_log_sums(const TemperedSoftmax<Vector>& student,
                                             const TemperedSoftmax<Vector>& teacher) {
  const Integers less = student.rest < teacher.rest;
  const Vector lower = select(less, student.rest, teacher.rest), higher = select(less, teacher.rest, student.rest);
  const Vector more = (higher - lower) / (Vector(1) + lower), size = log_one_plus(more);
  return select(Vector(1) >= more, select(less, -size, size), student.log_sum - teacher.log_sum);
}

// The softmax of logits, whose exponentials it leaves: the probabilities are `inverse` times these.
struct NarrowSoftmax : TemperedSoftmax<Vector> {
  Vector inverse;

  JAXLOSS_INLINE NarrowSoftmax(const DivergenceClasses& logits, int64_t classes, Vector scale_,
                               DivergenceClasses& exponentials) {
    const Vector zero(0), one(1);
    scale = scale_;
    max = Vector(no_logits<float>().max);
    for (int64_t j = 0; j < classes; j++) max = at_least(max, logits.column[j]);
    Vector sums[2];  // of those below the largest logit, and how many are as large
    wide_sums_over_classes(classes, sums, [&](int64_t j, Vector(&values)[2]) JAXLOSS_IN_LOOP {
      const Vector x_minus_max = logits.column[j] - max, e = exponential(x_minus_max * scale);
      const Integers is_largest = x_minus_max == zero;
      exponentials.column[j] = e;
      values[0] = select(is_largest, zero, e);
      values[1] = select(is_largest, one, zero);
    });
    const Integers apart = sums[1] > zero;
    const Vector beyond_one = select(apart, sums[0] + (sums[1] - one), sums[0]);
    const Vector whole = select(apart, one + beyond_one, beyond_one);
    log_sum = log_of_sum(whole, beyond_one, apart);
    rest = select(apart, beyond_one, beyond_one - one);
    // Of a class that is nearly sure a gradient may be the difference of its probability and the teacher's: right to
    // the last place.
    inverse = select(rest < one, one - rest / whole, one / whole);
  }
};

// The teacher's distribution: the probability of each class, and the logarithm of the student's over it.
struct TeacherLogitColumns {
  static constexpr std::bool_constant<true> normalised{};
  const DivergenceColumns& columns;
  NarrowSoftmax softmax;
  Ratio<Vector> ratio;

  JAXLOSS_INLINE TeacherLogitColumns(DivergenceColumns& columns_, int64_t classes, const NarrowSoftmax& student)
      : columns(columns_), softmax(columns.teacher, classes, student.scale, columns_.q), ratio(student, softmax) {}

  JAXLOSS_INLINE Vector probability(int64_t j) const { return columns.q.column[j] * softmax.inverse; }
  JAXLOSS_INLINE Vector log_ratio(const NarrowSoftmax&, Vector x, int64_t j) const {
    return ratio.log(x, columns.teacher.column[j]);
  }
  JAXLOSS_INLINE Vector sum(int64_t) const { return Vector(1); }
  JAXLOSS_INLINE void set_stats(DivergenceLanes& lanes) const {
    lanes.teacher_max = softmax.max;
    lanes.teacher_log_sum = softmax.log_sum;
  }
};
struct TeacherProbabilityColumns {
  static constexpr std::bool_constant<false> normalised{};
  const DivergenceColumns& columns;

  JAXLOSS_INLINE TeacherProbabilityColumns(DivergenceColumns& columns_, int64_t, const NarrowSoftmax&)
      : columns(columns_) {}

  JAXLOSS_INLINE Vector probability(int64_t j) const { return columns.teacher.column[j]; }
  JAXLOSS_INLINE Vector log_ratio(const NarrowSoftmax& student, Vector x, int64_t j) const {
    return student.log_probability(x) - logarithm(columns.teacher.column[j]);
  }
  JAXLOSS_INLINE Vector sum(int64_t classes) const {
    Vector total[1];
    wide_sums_over_classes(classes, total,
                           [&](int64_t j, Vector(&value)[1]) JAXLOSS_IN_LOOP { value[0] = columns.teacher.column[j]; });
    return total[0];
  }
  JAXLOSS_INLINE void set_stats(DivergenceLanes&) const {}
};

template <class Divergence, class Teacher>
__attribute__((noinline)) void narrow_divergences(DivergenceColumns& columns, DivergenceLanes& lanes, int64_t classes,
                                                  bool wants_gradient) {
  const Vector zero(0);
  const typename Divergence::template OfRow<Vector> divergence(lanes.parameter);
  const NarrowSoftmax student(columns.x, classes, lanes.scale, columns.p);
  const Teacher teacher(columns, classes, student);

  // Also where no gradient is wanted: one copy, that rounds alike.
  const auto set_terms = [&](int64_t j, Vector& value, Vector& of_student) JAXLOSS_IN_LOOP {
    const Vector p = columns.p.column[j] * student.inverse;
    divergence(teacher.normalised, StandardFunctions{}, teacher.log_ratio(student, columns.x.column[j], j), p,
               teacher.probability(j), value, of_student);
    columns.p.column[j] = p;
    columns.x.column[j] = of_student;
  };
  Vector without_p;
  if constexpr (Divergence::total_is_of_teacher) {
    Vector loss[1];
    wide_sums_over_classes(classes, loss, [&](int64_t j, Vector(&value)[1]) JAXLOSS_IN_LOOP {
      Vector of_student;
      set_terms(j, value[0], of_student);
    });
    lanes.loss = loss[0];
    lanes.total = -teacher.sum(classes);
    without_p = teacher.normalised ? zero : lanes.total;
  } else {
    Vector sums[2];
    wide_sums_over_classes(classes, sums,
                           [&](int64_t j, Vector(&values)[2]) JAXLOSS_IN_LOOP { set_terms(j, values[0], values[1]); });
    lanes.loss = sums[0];
    lanes.total = without_p = sums[1];
  }
  lanes.max = student.max;
  lanes.log_sum = student.log_sum;
  teacher.set_stats(lanes);
  if (!wants_gradient) return;
  const Integers nothing = lanes.weight == zero;
  const Vector factor = lanes.scale * lanes.weight;
  for (int64_t j = 0; j < classes; j++) {
    const Vector gradient = (columns.x.column[j] - columns.p.column[j] * without_p) * factor;
    columns.x.column[j] = select(nothing, zero, gradient);
  }
}

template <class Stored>
JAXLOSS_INLINE const Stored* numbers_of(TeacherLogits<Stored> teacher) {
  return teacher.logits;
}
template <class Stored>
JAXLOSS_INLINE const Stored* numbers_of(ClassProbabilities<Stored> teacher) {
  return teacher.probability;
}

// What rows are given, and where their results belong, whatever the types of their logits.
struct DivergenceNumbers {
  RowNumbers<float> weight, scale, parameter;
  float *loss, *max, *log_sum, *teacher_max, *teacher_log_sum, *total;

  __attribute__((noinline)) void load(DivergenceLanes& lanes, int64_t row, int64_t count) const {
    lanes.weight = numbers_of_lanes(weight, row, count);
    lanes.scale = numbers_of_lanes(scale, row, count);
    lanes.parameter = numbers_of_lanes(parameter, row, count);
  }
  // Of a row that is masked all are 0.
  __attribute__((noinline)) void store(const DivergenceLanes& lanes, int64_t row, int64_t count) const {
    const Integers out = bits<Integers>(lanes.weight) == Integers(INT32_MIN);  // the bits of −0.0
    const auto store = [&](float* results, const Vector& result) JAXLOSS_IN_LOOP {
      if (results) store_lanes(results + row, select(out, Vector(0), result), count);
    };
    store(loss, lanes.loss);
    store(max, lanes.max);
    store(log_sum, lanes.log_sum);
    store(teacher_max, lanes.teacher_max);
    store(teacher_log_sum, lanes.teacher_log_sum);
    store(total, lanes.total);
  }
};

// The rows [begin, end), if they can be done so; returns the first that is not done.
template <class Divergence, class Logit, class Teacher>
JAXLOSS_INLINE int64_t all_narrow_divergence_rows(const DivergenceRows<Divergence, Logit, Teacher>& rows, int64_t begin,
                                                  int64_t end) {
  if constexpr (!std::is_same_v<Logit, double>) {
    constexpr bool of_logits = std::is_same_v<Teacher, TeacherLogits<typename Teacher::Stored>>;
    using TeacherColumns = std::conditional_t<of_logits, TeacherLogitColumns, TeacherProbabilityColumns>;
    if (rows.classes == 0 || rows.classes > most_narrow_classes<Divergence, TeacherColumns>()) return begin;
    const DivergenceNumbers numbers{rows.row_weight, rows.scale,       rows.parameter,       rows.loss, rows.max,
                                    rows.log_sum,    rows.teacher_max, rows.teacher_log_sum, rows.total};
    DivergenceColumns columns;
    DivergenceLanes lanes;
    for (; begin < end; begin += kLanes) {
      const int64_t count = end - begin < kLanes ? end - begin : kLanes, first = begin * rows.classes;
      load_columns(columns.x, rows.logits + first, count, rows.classes);
      load_columns(columns.teacher, numbers_of(rows.teacher) + first, count, rows.classes);
      numbers.load(lanes, begin, count);
      narrow_divergences<Divergence, TeacherColumns>(columns, lanes, rows.classes, rows.gradient);
      numbers.store(lanes, begin, count);
      if (rows.gradient) store_columns(columns.x, rows.gradient + first, count, rows.classes);
    }
    return end;
  }
  return begin;
}

}  // namespace jaxloss::JAXLOSS_ISA
