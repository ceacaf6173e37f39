// The FFI boundary of cross entropy: check, fill in the task, run. `Platform` runs it: see cpu.cc and cuda.cc.
#pragma once

#include <cmath>
#include <limits>

#include "handlers/checks.h"

namespace jaxloss {

// The buffers that every call has, checked against each other.
struct Logits {
  ffi::AnyBuffer logits;      // [rows…, classes]
  ffi::AnyBuffer target;      // [rows…] class indices, or [rows…, classes] probabilities
  ffi::AnyBuffer row_weight;  // the first axes of rows…, [] for one weight for all

  size_t rank() const { return logits.dimensions().size() - 1; }  // of the rows
  int64_t rows() const { return product(logits.dimensions(), 0, rank()); }
  int64_t classes() const { return logits.dimensions()[rank()]; }
  int64_t rows_per_weight() const { return product(logits.dimensions(), row_weight.dimensions().size(), rank()); }

  template <class Real>
  void check(Checks& checks) const {
    checks.leading<Real>("row_weight", row_weight, logits.dimensions(), row_weight.dimensions().size())
        .require(row_weight.dimensions().size() <= rank(), "row_weight has more axes than there are rows");
  }

  template <class Real, class Buffer>
  void check_rows(Checks& checks, const char* name, const Buffer& buffer) const {
    checks.leading<Real>(name, buffer, logits.dimensions(), rank());
  }
};

// Calls `body(Logit{}, target)` with the stored type of the logits and the typed target.
template <class Body>
ffi::Error for_target(const Logits& in, Body body) {
  const Dimensions whole = in.logits.dimensions();
  if (whole.size() == 0) return ffi::Error::InvalidArgument("jaxloss: logits have no axis of classes");
  const ffi::DataType logit_type = in.logits.element_type(), target_type = in.target.element_type();
  Checks checks;
  if (target_type == ffi::S32) {
    checks.require(in.classes() <= std::numeric_limits<int32_t>::max(), "more classes than an int32 can index");
    const auto with_indices = [&](auto types) {
      using Logit = typename decltype(types)::Prediction;
      Checks shape;
      const Dimensions found = in.target.dimensions();
      bool same = found.size() == in.rank();
      for (size_t axis = 0; same && axis < found.size(); axis++) same = found[axis] == whole[axis];
      shape.require(same, "labels have shape " + written(found) + ", logits " + written(whole));
      if (!shape.passed()) return shape.error();
      return body(Logit{}, ClassIndices{data<int32_t>(in.target)});
    };
    if (!checks.passed()) return checks.error();
    return for_stored_types(logit_type, logit_type, with_indices, StoredPairs{});
  }
  const auto with_probabilities = [&](auto types) {
    using Stored = typename decltype(types)::Target;
    checks.leading<Stored>("target", in.target, whole, whole.size());
    if (!checks.passed()) return checks.error();
    return body(typename decltype(types)::Prediction{}, ClassProbabilities<Stored>{data<Stored>(in.target)});
  };
  return for_stored_types(logit_type, target_type, with_probabilities, StoredPairs{});
}

template <class Platform>
ffi::Error cross_entropy(typename Platform::Context context, Logits in, ffi::AnyBuffer loss, ffi::AnyBuffer* max,
                         ffi::AnyBuffer* log_sum, ffi::AnyBuffer* gradient, double clip) {
  return for_target(in, [&](auto logit, auto target) {
    using Logit = decltype(logit);
    using Real = Accumulator<Logit>;
    Checks checks;
    in.check<Real>(checks.clip(clip));
    in.check_rows<Real>(checks, "loss", loss);
    if (max) in.check_rows<Real>(checks, "max", *max);
    if (log_sum) in.check_rows<Real>(checks, "log_sum", *log_sum);
    if (gradient) checks.leading<Logit>("gradient", *gradient, in.logits.dimensions(), in.rank() + 1);
    if (!checks.passed()) return checks.error();

    return Platform::run(context, CrossEntropyRows<Logit, decltype(target)>{
                                      data<Logit>(in.logits), target, data<Real>(in.row_weight), data<Real>(loss),
                                      max ? data<Real>(*max) : nullptr, log_sum ? data<Real>(*log_sum) : nullptr,
                                      gradient ? data<Logit>(*gradient) : nullptr, in.rows(), in.classes(),
                                      in.rows_per_weight(), static_cast<Real>(-std::log(clip))});
  });
}

// → loss [rows…]
template <class Platform>
ffi::Error cross_entropy_value(typename Platform::Context context, ffi::AnyBuffer logits, ffi::AnyBuffer target,
                               ffi::AnyBuffer row_weight, ffi::Result<ffi::AnyBuffer> loss, double clip) {
  return cross_entropy<Platform>(context, {logits, target, row_weight}, *loss, nullptr, nullptr, nullptr, clip);
}

// → loss, max, log_sum [rows…]
template <class Platform>
ffi::Error cross_entropy_value_and_stats(typename Platform::Context context, ffi::AnyBuffer logits,
                                         ffi::AnyBuffer target, ffi::AnyBuffer row_weight,
                                         ffi::Result<ffi::AnyBuffer> loss, ffi::Result<ffi::AnyBuffer> max,
                                         ffi::Result<ffi::AnyBuffer> log_sum, double clip) {
  return cross_entropy<Platform>(context, {logits, target, row_weight}, *loss, &*max, &*log_sum, nullptr, clip);
}

// → loss [rows…], gradient like logits
template <class Platform>
ffi::Error cross_entropy_value_and_grad(typename Platform::Context context, ffi::AnyBuffer logits,
                                        ffi::AnyBuffer target, ffi::AnyBuffer row_weight,
                                        ffi::Result<ffi::AnyBuffer> loss, ffi::Result<ffi::AnyBuffer> gradient,
                                        double clip) {
  return cross_entropy<Platform>(context, {logits, target, row_weight}, *loss, nullptr, nullptr, &*gradient, clip);
}

// labels → sums [parts] of all rows' losses, each of some rows
template <class Platform>
ffi::Error cross_entropy_sums(typename Platform::Context context, Logits in, ffi::AnyBuffer sums,
                              ffi::AnyBuffer* gradient, double clip) {
  return for_target(in, [&](auto logit, auto target) {
    using Logit = decltype(logit);
    using Real = Accumulator<Logit>;
    if constexpr (!std::is_same_v<decltype(target), ClassIndices>) {
      return ffi::Error::InvalidArgument("jaxloss: target has no class indices");
    } else {
      Checks checks;
      in.check<Real>(checks.clip(clip));
      checks.require(sums.dimensions().size() == 1, "sums must have one axis, of parts");
      if (checks.passed()) checks.leading<Real>("sums", sums, sums.dimensions(), 1);
      if (gradient) checks.leading<Logit>("gradient", *gradient, in.logits.dimensions(), in.rank() + 1);
      if (!checks.passed()) return checks.error();

      CrossEntropyRows<Logit, ClassIndices> rows{};
      rows.logits = data<Logit>(in.logits);
      rows.target = target;
      rows.row_weight = data<Real>(in.row_weight);
      rows.gradient = gradient ? data<Logit>(*gradient) : nullptr;
      rows.rows = in.rows();
      rows.classes = in.classes();
      rows.rows_per_weight = in.rows_per_weight();
      rows.ceiling = static_cast<Real>(-std::log(clip));
      rows.sums = data<Real>(sums);
      rows.parts = sums.dimensions()[0];
      return Platform::run(context, rows);
    }
  });
}

template <class Platform>
ffi::Error cross_entropy_sums_value(typename Platform::Context context, ffi::AnyBuffer logits, ffi::AnyBuffer target,
                                    ffi::AnyBuffer row_weight, ffi::Result<ffi::AnyBuffer> sums, double clip) {
  return cross_entropy_sums<Platform>(context, {logits, target, row_weight}, *sums, nullptr, clip);
}

// → sums [parts], gradient like logits
template <class Platform>
ffi::Error cross_entropy_sums_value_and_grad(typename Platform::Context context, ffi::AnyBuffer logits,
                                             ffi::AnyBuffer target, ffi::AnyBuffer row_weight,
                                             ffi::Result<ffi::AnyBuffer> sums, ffi::Result<ffi::AnyBuffer> gradient,
                                             double clip) {
  return cross_entropy_sums<Platform>(context, {logits, target, row_weight}, *sums, &*gradient, clip);
}

// max, log_sum, target_sum [rows…] → gradient like logits
template <class Platform>
ffi::Error cross_entropy_grad(typename Platform::Context context, ffi::AnyBuffer logits, ffi::AnyBuffer target,
                              ffi::AnyBuffer row_weight, ffi::AnyBuffer max, ffi::AnyBuffer log_sum,
                              ffi::AnyBuffer target_sum, ffi::Result<ffi::AnyBuffer> gradient) {
  const Logits in{logits, target, row_weight};
  return for_target(in, [&](auto logit, auto typed_target) {
    using Logit = decltype(logit);
    using Real = Accumulator<Logit>;
    Checks checks;
    in.check<Real>(checks);
    in.check_rows<Real>(checks, "max", max);
    in.check_rows<Real>(checks, "log_sum", log_sum);
    in.check_rows<Real>(checks, "target_sum", target_sum);
    checks.leading<Logit>("gradient", *gradient, logits.dimensions(), in.rank() + 1);
    if (!checks.passed()) return checks.error();

    return Platform::run(
        context, CrossEntropyGradientRows<Logit, decltype(typed_target)>{
                     data<Logit>(logits), typed_target, data<Real>(row_weight), data<Real>(max), data<Real>(log_sum),
                     data<Real>(target_sum), data<Logit>(*gradient), in.rows(), in.classes(), in.rows_per_weight()});
  });
}

}  // namespace jaxloss
