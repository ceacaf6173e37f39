// Cross entropy of rows that fit in registers: `kLanes` lanes hold a row, so the logits are read once and both passes run
// from registers; a block holds many rows.
#pragma once

#include "gpu/cross_entropy_row.cuh"

namespace jaxloss::gpu {

constexpr int kRegisterThreads = 256;

// Takes rows of at most kLanes × kSteps × kWidth classes.
template <int kLanes, int kSteps, int kWidth, bool kGradient, class Logit, class Target>
__global__ void __launch_bounds__(kRegisterThreads) rows_in_registers(CrossEntropyRows<Logit, Target> rows) {
  using Real = Accumulator<Logit>;
  constexpr int kRows = kRegisterThreads / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int64_t steps = rows.classes / kWidth, stride = static_cast<int64_t>(gridDim.x) * kRows;
  // All lanes of a warp go round together, for the shuffles, whether their row exists and counts or not.
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kRows; base < rows.rows; base += stride) {
    const int64_t row = base + threadIdx.x / kLanes;
    const bool exists = row < rows.rows;
    const Real weight = exists ? rows.weight_of(row) : Real(0);
    const bool counts = exists && !taken_out(weight);
    const Logit* logits = rows.logits + row * rows.classes;

    Step<Logit, kWidth> x[kSteps];
    SoftmaxSums<Real> sums = no_logits<Real>();
#pragma unroll
    for (int k = 0; k < kSteps; k++) {
      const int64_t step = lane + k * kLanes;
      if (counts && step < steps) x[k] = Step<Logit, kWidth>(logits + step * kWidth);
    }
#pragma unroll
    for (int k = 0; k < kSteps; k++) {
      if (counts && lane + k * kLanes < steps) add(sums, x[k]);
    }
    sums = over_lanes<kLanes>(sums);

    const Real log_sum = logarithm(sums.sum);
    TargetSums<Real> of_target{0, 0};
    if (counts) {
      const RowTarget<Target> target(rows.target, row, rows.classes);
      if constexpr (!RowTarget<Target>::kHasSums) {
        of_target = index_sums(logits, target.index, rows.classes, sums.max, log_sum, rows.ceiling);
      } else {
#pragma unroll
        for (int k = 0; k < kSteps; k++) {
          const int64_t step = lane + k * kLanes;
          if (step < steps) {
            add(of_target, x[k], target, target.template at<kWidth>(step * kWidth), sums.max, log_sum, rows.ceiling);
          }
        }
      }
    }
    if constexpr (RowTarget<Target>::kHasSums) of_target = over_lanes<kLanes>(of_target);

    if (lane == 0 && exists) {
      store_row(rows, row, counts ? of_target.loss : Real(0), counts ? sums.max : Real(0), counts ? log_sum : Real(0));
    }
    if constexpr (kGradient) {
      Logit* gradient = rows.gradient + row * rows.classes;
      if (counts) {
        const RowTarget<Target> target(rows.target, row, rows.classes);
        const RowSums<Real> scale{sums.max, log_sum, 1 / sums.sum, of_target.target_sum, weight};
#pragma unroll
        for (int k = 0; k < kSteps; k++) {
          const int64_t step = lane + k * kLanes;
          if (step < steps) {
            store_gradient(gradient + step * kWidth, x[k], target, target.template at<kWidth>(step * kWidth), scale);
          }
        }
      } else if (exists) {
        store_zeros<kWidth>(gradient, steps, lane, kLanes);
      }
    }
  }
}

}  // namespace jaxloss::gpu
