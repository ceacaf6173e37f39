// Cross entropy of rows of any length on any GPU: a block a row. The logits are read for their softmax sums, and once more,
// mostly from the L2 cache, for the gradient.
#pragma once

#include "gpu/cross_entropy_row.cuh"

namespace jaxloss::gpu {

constexpr int kStreamingThreads = 512;

template <int kWidth, bool kGradient, class Logit, class Target>
__global__ void __launch_bounds__(kStreamingThreads) rows_streamed(CrossEntropyRows<Logit, Target> rows) {
  using Real = Accumulator<Logit>;
  constexpr int kUnroll = 4;
  const int64_t steps = rows.classes / kWidth;
  for (int64_t row = blockIdx.x; row < rows.rows; row += gridDim.x) {
    const Real weight = rows.weight_of(row);
    const Logit* logits = rows.logits + row * rows.classes;
    Logit* gradient = kGradient ? rows.gradient + row * rows.classes : nullptr;
    if (taken_out(weight)) {  // the same for all threads of the block
      if (threadIdx.x == 0) store_row(rows, row, Real(0), Real(0), Real(0));
      if constexpr (kGradient) store_zeros<kWidth>(gradient, steps, threadIdx.x, kStreamingThreads);
      continue;
    }

    SoftmaxSums<Real> sums = no_logits<Real>();
    for (int64_t base = threadIdx.x; base < steps; base += kUnroll * kStreamingThreads) {
      Step<Logit, kWidth> x[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; u++) {
        const int64_t step = base + u * kStreamingThreads;
        if (step < steps) x[u] = Step<Logit, kWidth>::kept(logits + step * kWidth);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; u++) {
        if (base + u * kStreamingThreads < steps) add(sums, x[u]);
      }
    }
    sums = over_block(sums, no_logits<Real>());

    const Real log_sum = logarithm(sums.sum);
    const RowTarget<Target> target(rows.target, row, rows.classes);
    TargetSums<Real> of_target{0, 0};
    if constexpr (!RowTarget<Target>::kHasSums) {
      of_target = index_sums(logits, target.index, rows.classes, sums.max, log_sum, rows.ceiling);
    } else {
      for (int64_t step = threadIdx.x; step < steps; step += kStreamingThreads) {
        const auto x = Step<Logit, kWidth>::kept(logits + step * kWidth);
        add(of_target, x, target, target.template at<kWidth>(step * kWidth), sums.max, log_sum, rows.ceiling);
      }
      of_target = over_block(of_target, TargetSums<Real>{0, 0});
    }
    if (threadIdx.x == 0) store_row(rows, row, of_target.loss, sums.max, log_sum);

    if constexpr (kGradient) {
      const RowSums<Real> scale{sums.max, log_sum, 1 / sums.sum, of_target.target_sum, weight};
      for (int64_t step = threadIdx.x; step < steps; step += kStreamingThreads) {
        const Step<Logit, kWidth> x(logits + step * kWidth);
        store_gradient(gradient + step * kWidth, x, target, target.template at<kWidth>(step * kWidth), scale);
      }
    }
  }
}

// The second pass alone.
template <int kWidth, class Logit, class Target>
__global__ void __launch_bounds__(kStreamingThreads) gradient_streamed(CrossEntropyGradientRows<Logit, Target> rows) {
  using Real = Accumulator<Logit>;
  const int64_t steps = rows.classes / kWidth;
  for (int64_t row = blockIdx.x; row < rows.rows; row += gridDim.x) {
    const Real weight = rows.weight_of(row);
    Logit* gradient = rows.gradient + row * rows.classes;
    if (taken_out(weight)) {
      store_zeros<kWidth>(gradient, steps, threadIdx.x, kStreamingThreads);
      continue;
    }
    const Logit* logits = rows.logits + row * rows.classes;
    const RowTarget<Target> target(rows.target, row, rows.classes);
    const Real log_sum = rows.log_sum[row];
    const RowSums<Real> scale{rows.max[row], log_sum, exponential(-log_sum), rows.target_sum[row], weight};
    for (int64_t step = threadIdx.x; step < steps; step += kStreamingThreads) {
      const Step<Logit, kWidth> x(logits + step * kWidth);
      store_gradient(gradient + step * kWidth, x, target, target.template at<kWidth>(step * kWidth), scale);
    }
  }
}

}  // namespace jaxloss::gpu
