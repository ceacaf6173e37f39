// The FFI boundary of the divergences of distributions: check, fill in the task, run. `Platform` runs it: see cpu.cc
// and cuda.cc.
#pragma once

#include <initializer_list>

#include "handlers/checks.h"

namespace jaxloss {

// What the teacher is given as, by the name that it has in the calls.
struct OfLogits {
  static constexpr const char* name = "of_logits";
  static constexpr int stats = 5;  // max, log_sum, teacher_max, teacher_log_sum, total
  template <class Stored>
  using Teacher = TeacherLogits<Stored>;
};
struct OfProbabilities {
  static constexpr const char* name = "of_probabilities";
  static constexpr int stats = 3;  // max, log_sum, total
  template <class Stored>
  using Teacher = ClassProbabilities<Stored>;
};

// logits, teacher [rows…, classes]; row_weight, scale and parameters, if any, each the first axes of rows…, [] for one
// number for all → loss [rows…], (gradient like logits,) the statistics [rows…]
template <class Platform, class Divergence, class Given>
ffi::Error divergence(typename Platform::Context context, ffi::AnyBuffer logits, ffi::AnyBuffer teacher,
                      ffi::AnyBuffer row_weight, ffi::AnyBuffer scale, ffi::RemainingArgs parameters,
                      ffi::AnyBuffer loss, ffi::AnyBuffer* gradient, ffi::RemainingRets stats) {
  const Dimensions whole = logits.dimensions();
  if (whole.size() == 0) return ffi::Error::InvalidArgument("jaxloss: logits have no axis of classes");
  const size_t rank = whole.size() - 1;
  const auto run = [&](auto types) {
    using Logit = typename decltype(types)::Prediction;
    using Stored = typename decltype(types)::Target;
    using Teacher = typename Given::template Teacher<Stored>;
    using Real = Accumulator<Logit>;
    Checks checks;
    checks.template leading<Stored>("teacher", teacher, whole, whole.size())
        .template leading<Real>("loss", loss, whole, rank)
        .require(parameters.size() == Divergence::parameter_count, "the number of parameters is wrong")
        .require(stats.size() == Given::stats, "the number of statistics is wrong");
    if (gradient) checks.leading<Logit>("gradient", *gradient, whole, whole.size());
    const auto numbers = [&](const char* name, const ffi::AnyBuffer& buffer) -> RowNumbers<Real> {
      const size_t axes = buffer.dimensions().size();
      checks.leading<Real>(name, buffer, whole, axes).require(axes <= rank, name, " has too many axes");
      return {0, data<Real>(buffer), axes <= rank ? product(whole, axes, rank) : 1};
    };
    const auto stat = [&](size_t i) -> Real* {
      auto buffer = stats.get<ffi::AnyBuffer>(i);
      checks.require(buffer.has_value(), "a statistic is not a buffer");
      if (!checks.passed()) return nullptr;
      checks.leading<Real>("a statistic", **buffer, whole, rank);
      return data<Real>(**buffer);
    };
    DivergenceRows<Divergence, Logit, Teacher> rows = {};
    rows.logits = data<Logit>(logits);
    rows.teacher = Teacher{data<Stored>(teacher)};
    rows.row_weight = numbers("row_weight", row_weight);
    rows.scale = numbers("scale", scale);
    if constexpr (Divergence::parameter_count > 0) {
      static_assert(Divergence::parameter_count == 1);
      const auto parameter = parameters.get<ffi::AnyBuffer>(0);
      checks.require(parameter.has_value(), "a parameter is not a buffer");
      if (checks.passed()) rows.parameter = numbers("parameter", *parameter);
    }
    rows.loss = data<Real>(loss);
    rows.max = stat(0);
    rows.log_sum = stat(1);
    if constexpr (Given::stats == 5) {
      rows.teacher_max = stat(2);
      rows.teacher_log_sum = stat(3);
    }
    rows.total = stat(Given::stats - 1);
    rows.gradient = gradient ? data<Logit>(*gradient) : nullptr;
    rows.rows = product(whole, 0, rank);
    rows.classes = whole[rank];
    if (!checks.passed()) return checks.error();
    return Platform::run(context, rows);
  };
  return for_stored_types(logits.element_type(), teacher.element_type(), run, StoredPairs{});
}

template <class Platform, class Divergence, class Given>
ffi::Error divergence_value(typename Platform::Context context, ffi::AnyBuffer logits, ffi::AnyBuffer teacher,
                            ffi::AnyBuffer row_weight, ffi::AnyBuffer scale, ffi::RemainingArgs parameters,
                            ffi::Result<ffi::AnyBuffer> loss, ffi::RemainingRets stats) {
  return divergence<Platform, Divergence, Given>(context, logits, teacher, row_weight, scale, parameters, *loss,
                                                 nullptr, stats);
}

template <class Platform, class Divergence, class Given>
ffi::Error divergence_value_and_grad(typename Platform::Context context, ffi::AnyBuffer logits, ffi::AnyBuffer teacher,
                                     ffi::AnyBuffer row_weight, ffi::AnyBuffer scale, ffi::RemainingArgs parameters,
                                     ffi::Result<ffi::AnyBuffer> loss, ffi::Result<ffi::AnyBuffer> gradient,
                                     ffi::RemainingRets stats) {
  return divergence<Platform, Divergence, Given>(context, logits, teacher, row_weight, scale, parameters, *loss,
                                                 &*gradient, stats);
}

}  // namespace jaxloss
