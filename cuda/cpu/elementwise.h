// Elementwise losses on the CPU: rows cut into parts, each part summed by one thread.
#pragma once

#include "cpu/steps.h"
#include "maths/elementwise.h"
#include "rows.h"

namespace jaxloss::JAXLOSS_ISA {

// The parameters of consecutive elements of a row, a step at a time.
template <class Stored, int count>
class ParameterSteps {
 public:
  using Real = Accumulator<Stored>;
  using Value = typename Step<Stored>::Value;

  // From the element on that is the `offset`-th of all rows'.
  JAXLOSS_INLINE ParameterSteps(const Parameters<Real, count>& parameters, int64_t row, int64_t offset)
      : features_(parameters.features), first_(features_ ? offset % features_ : 0) {
    for (int k = 0; k < count; k++) {
      const Parameter<Real>& parameter = parameters.of[k];
      const int64_t set = row / parameter.rows_per_set;
      numbers_[k] = parameter.per_feature ? parameter.numbers + set * features_ : nullptr;
      values_[k] = parameter.per_feature ? Value(0) : Value(parameter.numbers[set]);
    }
  }

  // Those of `size` elements from the i-th on.
  JAXLOSS_INLINE const Value* step(int64_t i, int64_t size) {
    if (features_ == 0) return values_;
    const int64_t feature = (first_ + i) % features_;
    for (int k = 0; k < count; k++) {
      if (numbers_[k]) values_[k] = load(numbers_[k], feature, size);
    }
    return values_;
  }

 private:
  JAXLOSS_INLINE Value load(const Real* numbers, int64_t feature, int64_t size) const {
    if (feature + size <= features_) return load_step(numbers + feature, size);
    Real around[Step<Real>::width] = {};
    for (int64_t i = 0; i < size; i++) {
      around[i] = numbers[feature];
      if (++feature == features_) feature = 0;
    }
    return Step<Real>::load(around);
  }

  int64_t features_, first_;
  const Real* numbers_[count];
  Value values_[count];
};

template <class Stored>
struct ParameterSteps<Stored, 0> {
  JAXLOSS_INLINE ParameterSteps(const Parameters<Accumulator<Stored>, 0>&, int64_t, int64_t) {}
  JAXLOSS_INLINE const typename Step<Stored>::Value* step(int64_t, int64_t) { return nullptr; }
};

// `width` consecutive elements: the sum of their losses, and their gradients where wanted.
template <bool kGradient, class Loss, class Prediction, class Target>
JAXLOSS_INLINE double elements(const Loss& loss, const Prediction* prediction, const Target* target,
                               ParameterSteps<Prediction, Loss::parameter_count> parameters, Prediction* gradient,
                               Accumulator<Prediction> weight, int64_t width) {
  using Value = typename Step<Prediction>::Value;
  return sum_over_steps<Prediction>(width, [&](int64_t i, int64_t count) JAXLOSS_IN_LOOP {
    Value value, derivative;
    loss(load_step(prediction + i, count), load_step(target + i, count), parameters.step(i, count), value, derivative);
    if constexpr (kGradient) store_step(gradient + i, weighted(Value(weight), derivative), count);
    return value;
  });
}

// Parts [begin, end) of all rows × parts.
template <bool kGradient, class Loss, class Prediction, class Target>
void elementwise_parts(const Loss& loss, const ElementwiseRows<Prediction, Target, Loss::parameter_count>& rows,
                       int64_t begin, int64_t end) {
  const int64_t part_size = part_width(rows.width, rows.parts);
  for (int64_t part = begin; part < end; part++) {
    const int64_t row = part / rows.parts, first = (part - row * rows.parts) * part_size;
    const int64_t rest = rows.width - first, count = rest < 0 ? 0 : rest < part_size ? rest : part_size;
    const int64_t offset = row * rows.width + first;
    const auto weight = rows.row_weight[row];
    Prediction* gradient = kGradient ? rows.gradient + offset : nullptr;
    if (is_masked(weight)) {
      rows.loss[part] = 0;
      if (kGradient && count > 0) std::memset(gradient, 0, count * sizeof(Prediction));
    } else {
      rows.loss[part] = static_cast<Accumulator<Prediction>>(
          elements<kGradient>(loss, rows.prediction + offset, rows.target + offset, {rows.parameters, row, offset},
                              gradient, weight, count));
    }
  }
}

}  // namespace jaxloss::JAXLOSS_ISA
