// Elementwise losses of wide rows: a block for each part of a row.
#pragma once

#include "gpu/core/reduce.cuh"
#include "gpu/core/vector.cuh"
#include "gpu/elementwise/parameters.cuh"
#include "rows.h"

namespace jaxloss::gpu {

constexpr int kWideThreads = 256;
constexpr int kWidePart = 1 << 30;  // the most elements of a part, which are counted in 32 bits

// How many vectors of predictions a thread loads before it uses the first. Four of each thread are all of a part, as
// most wide rows are cut: a block has it in flight at once, and blocks that run together are next to each other in
// memory.
// (Longer targets would take too many registers, and so would two forms with a gradient; and before sm_90 a kernel of
// float16 spilled one.)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
template <class Prediction>
constexpr bool kManyRegisters = std::is_same_v<Prediction, float16>;
#else
template <class Prediction>
constexpr bool kManyRegisters = false;
#endif
template <bool kGradient, class Loss, class Prediction, class Target>
constexpr int kWideBatch = kBoundByArithmetic<Loss> ? 1
                           : sizeof(Target) > sizeof(Prediction) || kManyRegisters<Prediction> ||
                                   (kGradient && kHasShortForm<Loss, Prediction>)
                               ? 2
                               : 4;

// The elements of a part: `vectors` from the `head`-th on, and those before and after, its edges. All of them are edges
// where its arrays are not aligned alike.
template <class Prediction>
struct PartOfRow {
  static constexpr int step = kPerVector<Prediction>;
  int head, vectors, edges;

  template <class... Array>
  __device__ __forceinline__ PartOfRow(int count, const Prediction* first, const Array*... along) {
    head = -static_cast<int>(reinterpret_cast<uintptr_t>(first) / sizeof(Prediction)) & (step - 1);
    if (head > count || !(aligned(along + head) && ...)) head = count;
    vectors = static_cast<unsigned>(count - head) / step;
    edges = count - vectors * step;
  }

  __device__ __forceinline__ int edge(int i) const { return i < head ? i : i + vectors * step; }
};

// The sum of all threads' numbers, in thread 0. One warp adds them up, while the others may leave.
template <int threads>
__device__ __forceinline__ double sum_of_block(double x) {
  __shared__ double of_thread[threads];
  of_thread[threadIdx.x] = x;
  __syncthreads();
  if (threadIdx.x >= kWarp) return 0;
  double sum = 0;
#pragma unroll
  for (int i = 0; i < threads; i += kWarp) sum += of_thread[i + threadIdx.x];
  return across_lanes(sum, kWarp, Sum());
}

// Block (i, j, k) takes part i of row j + k · gridDim.y. Its elements are read once, unless the row is masked, its
// gradients written once. A thread adds up its losses in double, a vector at a time: a part may be long.
template <bool kGradient, class Loss, class Prediction, class Target>
__global__ void __launch_bounds__(kWideThreads)
    elementwise_wide(Loss loss, ElementwiseRows<Prediction, Target, Loss::parameter_count> rows, int part_size) {
  using Real = Accumulator<Prediction>;
  constexpr int step = kPerVector<Prediction>, batch = kWideBatch<kGradient, Loss, Prediction, Target>;
  const int64_t row = blockIdx.y + static_cast<int64_t>(blockIdx.z) * gridDim.y;
  if (row >= rows.rows) return;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * part_size, rest = rows.width - first;
  const int count = rest < 0 ? 0 : rest < part_size ? static_cast<int>(rest) : part_size;
  const int64_t offset = count ? row * rows.width + first : 0;
  const Prediction* prediction = rows.prediction + offset;
  const Target* target = rows.target + offset;
  Prediction* gradient = kGradient ? rows.gradient + offset : nullptr;
  Real* loss_of_part = rows.loss + row * rows.parts + blockIdx.x;
  const Real weight = rows.row_weight[row];
  const PartOfRow<Prediction> part(count, prediction, target, kGradient ? gradient : prediction);

  if (is_masked(weight)) {
    const Real zeros[step] = {};
    if (kGradient) {
      for (int i = threadIdx.x; i < part.edges; i += kWideThreads) gradient[part.edge(i)] = stored<Prediction>(Real(0));
      for (int i = threadIdx.x; i < part.vectors; i += kWideThreads) {
        store<Prediction>(gradient + part.head + i * step, zeros);
      }
    }
    if (threadIdx.x == 0) *loss_of_part = 0;
    return;
  }

  ParametersAlong<Real, Loss::parameter_count> parameters(rows.parameters, rows.rows);
  parameters.to_row(row);
  double sum = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < part.edges; i += kWideThreads) {
    const int element = part.edge(i);
    Real value, derivative;
    parameters.to_element(offset + element);
    loss(number(prediction[element]), number(target[element]), parameters.number, value, derivative);
    sum += value;
    if (kGradient) gradient[element] = stored<Prediction>(weighted(weight, derivative));
  }
  constexpr bool has_short_form = kHasShortForm<Loss, Prediction>;
  // Lanes of a warp go round equally often where they choose the form together.
  const int end = has_short_form ? (part.vectors + kWarp - 1) / kWarp * kWarp : part.vectors;
#pragma unroll 1
  for (int i = threadIdx.x; i < end; i += batch * kWideThreads) {
    Packed<Prediction, step> predictions[batch];
    Packed<Target, step> targets[batch];
    const int start = part.head + i * step;
#pragma unroll
    for (int k = 0; k < batch; k++) {
      if (i + k * kWideThreads < part.vectors) {
        predictions[k] = load<step, Caching::evict_first>(prediction + start + k * kWideThreads * step);
        targets[k] = load<step, Caching::evict_first>(target + start + k * kWideThreads * step);
      }
    }
    const auto work = [&](const auto& form) {
#pragma unroll
      for (int k = 0; k < batch; k++) {
        if (i + k * kWideThreads < part.vectors) {
          Real x[step], a[step], value = 0;
          predictions[k].numbers(x);
          targets[k].numbers(a);
          parameters.to_element(offset + start + k * kWideThreads * step);
#pragma unroll
          for (int j = 0; j < step; j++) {
            Real of_element, derivative;
            form(x[j], a[j], parameters.number, of_element, derivative);
            if (j + 1 < step) parameters.to_next_element();
            value += of_element;
            x[j] = weighted(weight, derivative);
          }
          sum += value;
          if (kGradient) store<Prediction>(gradient + start + k * kWideThreads * step, x);
        }
      }
    };
    if constexpr (has_short_form) {
      bool is_short = true;
#pragma unroll
      for (int k = 0; k < batch; k++) {
        if (i + k * kWideThreads < part.vectors) is_short = is_short && loss.takes_short_form(predictions[k]);
      }
      if (!__any_sync(kAllLanes, !is_short)) {
        work(Loss::short_form());
      } else {
        work(loss);
      }
    } else {
      work(loss);
    }
  }
  sum = sum_of_block<kWideThreads>(sum);
  if (threadIdx.x == 0) *loss_of_part = static_cast<Real>(sum);
}

}  // namespace jaxloss::gpu
