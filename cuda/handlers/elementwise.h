// The FFI boundary of the elementwise losses: check, fill in the task, run. `Platform` runs it: see cpu.cc and cuda.cc.
#pragma once

#include "handlers/checks.h"

namespace jaxloss {

using Parameters = ffi::Span<const double>;

// prediction [rows…, width…], target of the same shape, row_weight [rows…] → loss [rows…, parts] (, gradient like
// prediction)
template <class Platform, class Loss>
ffi::Error elementwise(typename Platform::Context context, ffi::AnyBuffer prediction, ffi::AnyBuffer target,
                       ffi::AnyBuffer row_weight, ffi::Result<ffi::AnyBuffer> loss, ffi::AnyBuffer* gradient,
                       Parameters parameters) {
  const auto run = [&](auto types) {
    using Prediction = typename decltype(types)::Prediction;
    using Target = typename decltype(types)::Target;
    using Real = Accumulator<Prediction>;
    const Dimensions whole = prediction.dimensions();
    const size_t rank = row_weight.dimensions().size();
    const Dimensions loss_shape = loss->dimensions();
    const int64_t parts = loss_shape.size() == rank + 1 ? loss_shape[rank] : 0;
    Checks checks;
    checks.leading<Target>("target", target, whole, whole.size())
        .template leading<Real>("row_weight", row_weight, whole, rank)
        .template leading<Real>("loss", *loss, whole, rank, parts)
        .require(parts > 0, "loss has no axis of parts")
        .require(parameters.size() == Loss::parameter_count, "parameters has the wrong number of entries");
    if (gradient) checks.leading<Prediction>("gradient", *gradient, whole, whole.size());
    if (!checks.passed()) return checks.error();

    const int64_t rows = product(whole, 0, rank), width = product(whole, rank, whole.size());
    return Platform::run(
        context, ElementwiseTask<Loss, Prediction, Target>{
                     Loss(parameters.begin()),
                     {data<Prediction>(prediction), data<Target>(target), data<Real>(row_weight), data<Real>(*loss),
                      gradient ? data<Prediction>(*gradient) : nullptr, rows, width, parts}});
  };
  return for_stored_types(prediction.element_type(), target.element_type(), run, StoredPairs{});
}

template <class Platform, class Loss>
ffi::Error elementwise_value(typename Platform::Context context, ffi::AnyBuffer prediction, ffi::AnyBuffer target,
                             ffi::AnyBuffer row_weight, ffi::Result<ffi::AnyBuffer> loss, Parameters parameters) {
  return elementwise<Platform, Loss>(context, prediction, target, row_weight, loss, nullptr, parameters);
}

template <class Platform, class Loss>
ffi::Error elementwise_value_and_grad(typename Platform::Context context, ffi::AnyBuffer prediction,
                                      ffi::AnyBuffer target, ffi::AnyBuffer row_weight,
                                      ffi::Result<ffi::AnyBuffer> loss, ffi::Result<ffi::AnyBuffer> gradient,
                                      Parameters parameters) {
  return elementwise<Platform, Loss>(context, prediction, target, row_weight, loss, &*gradient, parameters);
}

}  // namespace jaxloss
