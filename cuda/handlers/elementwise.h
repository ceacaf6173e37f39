// The FFI boundary of the elementwise losses: check, fill in the task, run. `Platform` runs it: see cpu.cc and cuda.cc.
#pragma once

#include <algorithm>

#include "handlers/checks.h"

namespace jaxloss {

using Constants = ffi::Span<const double>;

// The parameters of a loss: each has the first axes of the rows, then one axis, of 1 number or of one for each index of
// the prediction's last axis.
template <class Real, int count>
Parameters<Real, count> checked_parameters(Checks& checks, ffi::RemainingArgs buffers, Dimensions whole, size_t rank) {
  Parameters<Real, count> parameters{};
  if (buffers.size() != count) {
    checks.require(false, "found " + std::to_string(buffers.size()) + " parameters: expected " + std::to_string(count));
  }
  if constexpr (count > 0) {
    const int64_t last = whole.size() > 0 ? whole[whole.size() - 1] : 1;
    for (int k = 0; k < count && checks.passed(); k++) {
      const auto buffer = buffers.get<ffi::AnyBuffer>(k);
      checks.require(buffer.has_value(), "a parameter is not a buffer");
      if (!checks.passed()) break;
      const Dimensions found = buffer->dimensions();
      const size_t axes = std::max<size_t>(found.size(), 1) - 1;
      const int64_t length = found.size() > 0 ? found[axes] : 0;
      checks.leading<Real>("a parameter", *buffer, whole, axes, length)
          .require(axes <= rank, "a parameter has more axes than there are rows")
          .require(length == 1 || length == last,
                   "a parameter has " + std::to_string(length) + " numbers: expected 1 or " + std::to_string(last));
      if (!checks.passed()) break;
      const bool per_feature = length != 1;
      parameters.of[k] = {data<Real>(*buffer), std::max<int64_t>(1, product(whole, axes, rank)), per_feature};
      if (per_feature) parameters.features = last;
    }
  }
  return parameters;
}

// prediction [rows…, width…], target of the same shape, row_weight [rows…], parameters → loss [rows…, parts] (,
// gradient like prediction)
template <class Platform, class Loss>
ffi::Error elementwise(typename Platform::Context context, ffi::AnyBuffer prediction, ffi::AnyBuffer target,
                       ffi::AnyBuffer row_weight, ffi::RemainingArgs parameter_buffers,
                       ffi::Result<ffi::AnyBuffer> loss, ffi::AnyBuffer* gradient, Constants constants) {
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
        .require(constants.size() == Loss::constant_count, "constants has the wrong number of entries");
    if (gradient) checks.leading<Prediction>("gradient", *gradient, whole, whole.size());
    if (!checks.passed()) return checks.error();
    const auto parameters = checked_parameters<Real, Loss::parameter_count>(checks, parameter_buffers, whole, rank);
    if (!checks.passed()) return checks.error();

    const int64_t rows = product(whole, 0, rank), width = product(whole, rank, whole.size());
    return Platform::run(
        context, ElementwiseTask<Loss, Prediction, Target>{
                     Loss(constants.begin()),
                     {data<Prediction>(prediction), data<Target>(target), data<Real>(row_weight), data<Real>(*loss),
                      gradient ? data<Prediction>(*gradient) : nullptr, rows, width, parts, parameters}});
  };
  return for_stored_types(prediction.element_type(), target.element_type(), run, StoredPairs{});
}

template <class Platform, class Loss>
ffi::Error elementwise_value(typename Platform::Context context, ffi::AnyBuffer prediction, ffi::AnyBuffer target,
                             ffi::AnyBuffer row_weight, ffi::RemainingArgs parameters, ffi::Result<ffi::AnyBuffer> loss,
                             Constants constants) {
  return elementwise<Platform, Loss>(context, prediction, target, row_weight, parameters, loss, nullptr, constants);
}

template <class Platform, class Loss>
ffi::Error elementwise_value_and_grad(typename Platform::Context context, ffi::AnyBuffer prediction,
                                      ffi::AnyBuffer target, ffi::AnyBuffer row_weight, ffi::RemainingArgs parameters,
                                      ffi::Result<ffi::AnyBuffer> loss, ffi::Result<ffi::AnyBuffer> gradient,
                                      Constants constants) {
  return elementwise<Platform, Loss>(context, prediction, target, row_weight, parameters, loss, &*gradient, constants);
}

}  // namespace jaxloss
