// The FFI boundary of cross entropy with options. Which parameters and results a call has is in its attributes: a bit
// for each, in the order of `CrossEntropyOptionRows::take_options` and of the list of results below, both of which
// `jaxloss/_spec.py` repeats.
#pragma once

#include <optional>

#include "handlers/cross_entropy.h"

namespace jaxloss {

// The parameters of a call, one after the other. Each is checked as it is taken: rows' numbers have the first axes of
// the rows.
class OptionOperands {
 public:
  OptionOperands(const Logits& in, ffi::RemainingArgs arguments, int64_t given, Checks& checks)
      : in_(in), arguments_(arguments), given_(given), checks_(checks) {}

  template <class Number>
  void take(const char* name, RowNumbers<Number>& numbers) {
    const std::optional<ffi::AnyBuffer> buffer = next(name);
    if (!buffer) return;
    const size_t rank = buffer->dimensions().size();
    checks_.leading<Number>(name, *buffer, whole(), rank)
        .require(rank <= in_.rank(), name, " has more axes than there are rows");
    if (!checks_.passed()) return;
    numbers.number = data<Number>(*buffer);
    numbers.rows_per_number = product(whole(), rank, in_.rank());
  }

  // One number for each row.
  template <class Real>
  void take_rows(const char* name, const Real*& numbers) {
    const std::optional<ffi::AnyBuffer> buffer = next(name);
    if (!buffer) return;
    in_.check_rows<Real>(checks_, name, *buffer);
    if (checks_.passed()) numbers = data<Real>(*buffer);
  }

  // One number for each class, of the rows that its first axes name.
  template <class Real>
  void take_classes(const char* name, const Real*& numbers, int64_t& rows_per_number) {
    const std::optional<ffi::AnyBuffer> buffer = next(name);
    if (!buffer) return;
    const size_t rank = buffer->dimensions().size();
    checks_.require(rank >= 1 && rank <= whole().size(), name, " has no axis of classes, or too many axes");
    if (!checks_.passed()) return;
    checks_.leading<Real>(name, *buffer, whole(), rank - 1, in_.classes());
    if (!checks_.passed()) return;
    numbers = data<Real>(*buffer);
    rows_per_number = product(whole(), rank - 1, in_.rank());
  }

  void finish() { checks_.require(index_ == arguments_.size() && !(given_ >> bit_), "too many parameters"); }

 private:
  std::optional<ffi::AnyBuffer> next(const char* name) {
    if (!(given_ >> bit_++ & 1) || !checks_.passed()) return std::nullopt;
    const auto buffer = arguments_.get<ffi::AnyBuffer>(index_++);
    checks_.require(buffer.has_value(), name, " is missing");
    return buffer.has_value() ? std::optional(*buffer) : std::nullopt;
  }
  Dimensions whole() const { return in_.logits.dimensions(); }

  const Logits& in_;
  ffi::RemainingArgs arguments_;
  int64_t given_;
  Checks& checks_;
  int bit_ = 0;
  size_t index_ = 0;
};

// The same for results.
class OptionResults {
 public:
  OptionResults(const Logits& in, ffi::RemainingRets results, int64_t wanted, Checks& checks)
      : in_(in), results_(results), wanted_(wanted), checks_(checks) {}

  template <class Number>
  void give_rows(const char* name, Number*& numbers) {
    const std::optional<ffi::AnyBuffer> buffer = next(name);
    if (!buffer) return;
    in_.check_rows<Number>(checks_, name, *buffer);
    if (checks_.passed()) numbers = data<Number>(*buffer);
  }

  template <class Logit>
  void give_gradient(Logit*& gradient) {
    const std::optional<ffi::AnyBuffer> buffer = next("gradient");
    if (!buffer) return;
    checks_.leading<Logit>("gradient", *buffer, in_.logits.dimensions(), in_.rank() + 1);
    if (checks_.passed()) gradient = data<Logit>(*buffer);
  }

  // Of all rows together, in as many parts as the caller has room for.
  template <class Real>
  void give_parts(const char* name, Real*& sums, int64_t& parts) {
    const std::optional<ffi::AnyBuffer> buffer = next(name);
    if (!buffer) return;
    checks_.require(buffer->dimensions().size() == 1, name, " must have one axis, of parts");
    if (!checks_.passed()) return;
    checks_.leading<Real>(name, *buffer, buffer->dimensions(), 1);
    if (!checks_.passed()) return;
    sums = data<Real>(*buffer);
    parts = buffer->dimensions()[0];
  }

  void finish() { checks_.require(index_ == results_.size() && !(wanted_ >> bit_), "too many results"); }

 private:
  std::optional<ffi::AnyBuffer> next(const char* name) {
    if (!(wanted_ >> bit_++ & 1) || !checks_.passed()) return std::nullopt;
    auto buffer = results_.get<ffi::AnyBuffer>(index_++);
    checks_.require(buffer.has_value(), std::string("result ") + name + " is missing");
    return buffer.has_value() ? std::optional(**buffer) : std::nullopt;
  }

  const Logits& in_;
  ffi::RemainingRets results_;
  int64_t wanted_;
  Checks& checks_;
  int bit_ = 0;
  size_t index_ = 0;
};

template <class Platform>
ffi::Error cross_entropy_with_options(typename Platform::Context context, ffi::AnyBuffer logits, ffi::AnyBuffer target,
                                      ffi::AnyBuffer row_weight, ffi::RemainingArgs parameters,
                                      ffi::RemainingRets results, int64_t given, int64_t wanted,
                                      int64_t smoothed_classes, double clip) {
  const Logits in{logits, target, row_weight};
  return for_target(in, [&](auto logit, auto typed_target) {
    using Logit = decltype(logit);
    using Real = Accumulator<Logit>;
    CrossEntropyOptionRows<Logit, decltype(typed_target)> rows;
    Checks checks;
    in.check<Real>(checks.clip(clip));
    checks.require(smoothed_classes >= 0 && smoothed_classes <= std::numeric_limits<int32_t>::max(),
                   "smoothed_classes is no number of classes");
    OptionOperands operands(in, parameters, given, checks);
    rows.take_options(operands);
    operands.take_rows("maximum", rows.known_max);
    operands.take_rows("log_sum", rows.known_log_sum);
    operands.take_rows("total", rows.known_total);
    operands.take_rows("of_lse", rows.of_lse);
    operands.take_rows("of_entropy", rows.of_entropy);
    operands.finish();
    OptionResults written(in, results, wanted, checks);
    written.give_rows("loss", rows.loss);
    written.give_rows("maximum", rows.max);
    written.give_rows("log_sum", rows.log_sum);
    written.give_rows("nll", rows.nll);
    written.give_rows("entropy", rows.entropy);
    written.give_rows("predicted", rows.predicted);
    written.give_rows("rank", rows.rank);
    written.give_gradient(rows.gradient);
    if constexpr (Platform::sums_rows) written.give_parts("sums", rows.sums, rows.parts);
    written.finish();
    // All that is known of a row is known together, and then only its gradient is wanted; details come together.
    const bool known = rows.known_max, of_stats = rows.of_lse, gradient_alone = known || of_stats;
    checks.require(known == !!rows.known_log_sum && known == !!rows.known_total, "only a part of a row is known")
        .require(of_stats == !!rows.of_entropy && !(of_stats && known), "weights of statistics come together and alone")
        .require(gradient_alone == !(rows.loss || rows.sums) &&
                     !(gradient_alone && (rows.max || rows.entropy || !rows.gradient)),
                 "of known rows, and of statistics, a gradient is to be had, and nothing else")
        .require(!rows.sums || !(rows.loss || rows.max || rows.log_sum || rows.entropy),
                 "beside sums there is a gradient to be had, and nothing else")
        .require(!rows.entropy == !rows.nll && !rows.entropy == !rows.predicted && !rows.entropy == !rows.rank,
                 "nll, entropy, predicted and rank come together");
    if (!checks.passed()) return checks.error();
    rows.logits = data<Logit>(logits);
    rows.target = typed_target;
    rows.row_weight.number = data<Real>(row_weight);
    rows.row_weight.rows_per_number = in.rows_per_weight();
    rows.rows = in.rows();
    rows.classes = in.classes();
    rows.smoothed_classes = smoothed_classes == 0 ? rows.classes : smoothed_classes;
    rows.ceiling = static_cast<Real>(-std::log(clip));
    return Platform::run(context, rows);
  });
}

}  // namespace jaxloss
