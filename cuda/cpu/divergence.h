// Divergences of distributions on the CPU: a row at a time, which stays in the cache between its passes: the maxima,
// the sums of exponentials, the divergence, the gradient.
#pragma once

#include <initializer_list>

#include "cpu/cross_entropy.h"
#include "cpu/divergence_narrow.h"
#include "cpu/steps.h"
#include "maths/divergence.h"
#include "rows.h"

namespace jaxloss::JAXLOSS_ISA {

template <class Logit>
JAXLOSS_INLINE TemperedSoftmax<Accumulator<Logit>> tempered_softmax(const Logit* logits, int64_t classes,
                                                                    Accumulator<Logit> scale) {
  const auto max = row_max(logits, classes);
  const auto exponentials = sum_of_exponentials(logits, classes, max, [&](auto x_minus_max) JAXLOSS_IN_LOOP {
    return exponential(x_minus_max * decltype(x_minus_max)(scale));
  });
  return {max, exponentials.log(), exponentials.apart ? exponentials.rest : exponentials.rest - 1, scale};
}

// The teacher's distribution in one row: the probability of each class, and the logarithm of the student's over it.
template <class Stored>
struct TeacherOfLogits {
  using Real = Accumulator<Stored>;
  static constexpr std::bool_constant<true> normalised{};
  const Stored* logits;
  TemperedSoftmax<Real> softmax;

  JAXLOSS_INLINE TeacherOfLogits(TeacherLogits<Stored> teacher, int64_t row, int64_t classes, Real scale)
      : logits(teacher.logits + row * classes), softmax(tempered_softmax(logits, classes, scale)) {}

  template <class Value>
  JAXLOSS_INLINE void load(const TemperedSoftmax<Real>& student, int64_t i, int64_t count, Value x, Value, Value& d,
                           Value& q) const {
    const Value y = load_step(logits + i, count);
    d = Ratio<Real>(student, softmax).log(x, y);
    q = exponential(softmax.log_probability(y));
  }
  JAXLOSS_INLINE Real sum(int64_t) const { return 1; }
  template <class Rows>
  JAXLOSS_INLINE void store_stats(const Rows& rows, int64_t row) const {
    rows.teacher_max[row] = softmax.max;
    rows.teacher_log_sum[row] = softmax.log_sum;
  }
};
template <class Stored>
struct TeacherOfProbabilities {
  using Real = Accumulator<Stored>;
  static constexpr std::bool_constant<false> normalised{};
  const Stored* probabilities;

  JAXLOSS_INLINE TeacherOfProbabilities(ClassProbabilities<Stored> teacher, int64_t row, int64_t classes, Real)
      : probabilities(teacher.probability + row * classes) {}

  template <class Value>
  JAXLOSS_INLINE void load(const TemperedSoftmax<Real>&, int64_t i, int64_t count, Value, Value log_p, Value& d,
                           Value& q) const {
    q = load_step(probabilities + i, count);
    d = log_p - logarithm(q);
  }
  JAXLOSS_INLINE Real sum(int64_t classes) const {
    return static_cast<Real>(sum_over_steps<Stored>(
        classes, [&](int64_t i, int64_t count) JAXLOSS_IN_LOOP { return load_step(probabilities + i, count); }));
  }
  template <class Rows>
  JAXLOSS_INLINE void store_stats(const Rows&, int64_t) const {}
};
template <class Stored>
JAXLOSS_INLINE TeacherOfLogits<Stored> teacher_of(TeacherLogits<Stored> teacher, int64_t row, int64_t classes,
                                                  Accumulator<Stored> scale) {
  return {teacher, row, classes, scale};
}
template <class Stored>
JAXLOSS_INLINE TeacherOfProbabilities<Stored> teacher_of(ClassProbabilities<Stored> teacher, int64_t row,
                                                         int64_t classes, Accumulator<Stored> scale) {
  return {teacher, row, classes, scale};
}

// One row that is not masked.
template <class Divergence, class Logit, class Teacher>
JAXLOSS_INLINE void divergence_row(const DivergenceRows<Divergence, Logit, Teacher>& rows, int64_t row) {
  using Real = Accumulator<Logit>;
  using Value = ValueOf<Logit>;
  const int64_t classes = rows.classes;
  const Logit* logits = rows.logits + row * classes;
  Logit* gradient = rows.gradient ? rows.gradient + row * classes : nullptr;
  const Real weight = rows.row_weight.of(row), scale = rows.scale.of(row);
  const typename Divergence::template OfRow<Real> divergence(rows.parameter.of(row));
  const TemperedSoftmax<Real> student = tempered_softmax(logits, classes, scale);
  const auto teacher = teacher_of(rows.teacher, row, classes, scale);

  const auto terms = [&](int64_t i, int64_t count, Value& p, Value& value, Value& of_student) JAXLOSS_IN_LOOP {
    const Value x = load_step(logits + i, count), log_p = student.log_probability(x);
    Value d, q;
    teacher.load(student, i, count, x, log_p, d, q);
    p = exponential(log_p);
    divergence(teacher.normalised, StandardFunctions{}, d, p, q, value, of_student);
  };
  const auto store_gradient = [&](int64_t i, int64_t count, Value p, Value of_student, Real total) JAXLOSS_IN_LOOP {
    store_step(gradient + i, (of_student - p * Value(total)) * Value(scale * weight), count);
  };
  const bool wants_gradient = gradient && weight != 0;

  double loss, total;
  if constexpr (Divergence::total_is_of_teacher) {
    total = -teacher.sum(classes);
    const Real without_p = teacher.normalised ? Real(0) : static_cast<Real>(total);
    loss = sum_over_steps<Logit>(classes, [&](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
      Value p, value, of_student;
      terms(i, count, p, value, of_student);
      if (wants_gradient) store_gradient(i, count, p, of_student, without_p);
      return value;
    });
  } else {
    double sums[2];
    sums_over_steps<Logit>(
        classes, sums,
        [&](int64_t i, int64_t count, Value(&values)[2]) JAXLOSS_IN_LOOP {
          Value p;
          terms(i, count, p, values[0], values[1]);
        },
        [](int64_t, int64_t, const auto&) JAXLOSS_IN_LOOP {});
    loss = sums[0];
    total = sums[1];
    if (wants_gradient) {
      for_each_step<Logit>(classes, [&](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
        Value p, value, of_student;
        terms(i, count, p, value, of_student);
        store_gradient(i, count, p, of_student, static_cast<Real>(total));
      });
    }
  }
  if (gradient && !wants_gradient) std::memset(gradient, 0, classes * sizeof(Logit));
  rows.loss[row] = static_cast<Real>(loss);
  rows.max[row] = student.max;
  rows.log_sum[row] = student.log_sum;
  teacher.store_stats(rows, row);
  rows.total[row] = static_cast<Real>(total);
}

// Rows [begin, end).
template <class Divergence, class Logit, class Teacher>
void divergence_rows(const DivergenceRows<Divergence, Logit, Teacher>& rows, int64_t begin, int64_t end) {
  for (int64_t row = all_narrow_divergence_rows(rows, begin, end); row < end; row++) {
    if (!is_masked(rows.row_weight.of(row))) {
      divergence_row(rows, row);
      continue;
    }
    for (auto* result : {rows.loss, rows.max, rows.log_sum, rows.teacher_max, rows.teacher_log_sum, rows.total}) {
      if (result) result[row] = 0;
    }
    if (rows.gradient) std::memset(rows.gradient + row * rows.classes, 0, rows.classes * sizeof(Logit));
  }
}

}  // namespace jaxloss::JAXLOSS_ISA
