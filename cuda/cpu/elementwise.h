// Elementwise losses on the CPU: rows cut into parts, each part summed by one thread.
#pragma once

#include "cpu/simd.h"
#include "maths/elementwise.h"
#include "rows.h"

namespace jaxloss::JAXLOSS_ISA {

// `width` consecutive elements: the sum of their losses, and their gradients where wanted.
template <bool kGradient, class Loss, class Prediction, class Target>
JAXLOSS_INLINE double elements(const Loss& loss, const Prediction* prediction, const Target* target,
                               Prediction* gradient, Accumulator<Prediction> weight, int64_t width) {
  using Value = typename Step<Prediction>::Value;
  return sum_over_steps<Prediction>(width, [&](int64_t i, int64_t count) {
    Value value, derivative;
    loss(load_step(prediction + i, count), load_step(target + i, count), value, derivative);
    if constexpr (kGradient) store_step(gradient + i, weighted(Value(weight), derivative), count);
    return value;
  });
}

// Parts [begin, end) of all rows × parts.
template <bool kGradient, class Loss, class Prediction, class Target>
void elementwise_parts(const Loss& loss, const ElementwiseRows<Prediction, Target>& rows, int64_t begin, int64_t end) {
  const int64_t part_size = part_width(rows.width, rows.parts);
  for (int64_t part = begin; part < end; part++) {
    const int64_t row = part / rows.parts, first = (part - row * rows.parts) * part_size;
    const int64_t rest = rows.width - first, count = rest < 0 ? 0 : rest < part_size ? rest : part_size;
    const int64_t offset = row * rows.width + first;
    const auto weight = rows.row_weight[row];
    Prediction* gradient = kGradient ? rows.gradient + offset : nullptr;
    if (taken_out(weight)) {
      rows.loss[part] = 0;
      if (kGradient && count > 0) std::memset(gradient, 0, count * sizeof(Prediction));
    } else {
      rows.loss[part] = static_cast<Accumulator<Prediction>>(
          elements<kGradient>(loss, rows.prediction + offset, rows.target + offset, gradient, weight, count));
    }
  }
}

}  // namespace jaxloss::JAXLOSS_ISA
