// Elementwise losses of wide rows: a block for each part of a row.
#pragma once

#include "gpu/parameters.cuh"
#include "gpu/reduce.cuh"
#include "gpu/vector.cuh"
#include "rows.h"

namespace jaxloss::gpu {

constexpr int kWideThreads = 256;

// Piece i of rows × parts is part i % parts of row i / parts; a block takes every gridDim.x-th. Its elements are read
// once, unless the row is taken out, its gradients written once. Losses are summed in double, a step of a thread at a
// time: a part may be as long as it likes.
template <class Loss, class Prediction, class Target>
__global__ void __launch_bounds__(kWideThreads)
    elementwise_wide(Loss loss, ElementwiseRows<Prediction, Target, Loss::parameter_count> rows, int64_t part_size) {
  using Real = Accumulator<Prediction>;
  constexpr int step = kPerVector<Prediction>, most_at_once = kBoundByArithmetic<Loss> ? 1 : 4;
  ParametersAlong<Real, Loss::parameter_count> parameters(rows.parameters, rows.rows);
  for (int64_t piece = blockIdx.x; piece < rows.rows * rows.parts; piece += gridDim.x) {
    const int64_t row = piece / rows.parts, first = (piece - row * rows.parts) * part_size;
    const int64_t rest = rows.width - first, count = rest < 0 ? 0 : rest < part_size ? rest : part_size;
    const int64_t offset = count ? row * rows.width + first : 0;
    const Prediction* prediction = rows.prediction + offset;
    const Target* target = rows.target + offset;
    Prediction* gradient = rows.gradient ? rows.gradient + offset : nullptr;
    const Real weight = rows.row_weight[row];
    const bool out = taken_out(weight);
    parameters.to_row(row);
    const Span<Prediction> span(count, prediction, target, gradient ? gradient : prediction);

    double sum = 0;
    for (int64_t i = threadIdx.x; i < span.edges; i += kWideThreads) {
      const int64_t element = span.edge(i);
      Real value = 0, derivative = 0;
      if (!out) {
        parameters.to_element(offset + element);
        loss(number(prediction[element]), number(target[element]), parameters.number, value, derivative);
      }
      sum += value;
      if (gradient) gradient[element] = stored<Prediction>(weighted(weight, derivative));
    }
    if (!out) {
      for_batches<most_at_once, int64_t>(threadIdx.x, span.steps, kWideThreads, [&](auto batch, int64_t i) {
        Packed<Prediction, step> predictions[batch];
        Packed<Target, step> targets[batch];
#pragma unroll
        for (int k = 0; k < batch; k++) {
          const int64_t start = span.start_of(i + k * kWideThreads);
          predictions[k] = load<step, Reading::once>(prediction + start);
          targets[k] = load<step, Reading::once>(target + start);
        }
#pragma unroll
        for (int k = 0; k < batch; k++) {
          Real x[step], a[step], value = 0;
          predictions[k].numbers(x);
          targets[k].numbers(a);
          parameters.to_element(offset + span.start_of(i + k * kWideThreads));
#pragma unroll
          for (int j = 0; j < step; j++) {
            Real of_element, derivative;
            loss(x[j], a[j], parameters.number, of_element, derivative);
            if (j + 1 < step) parameters.to_next_element();
            value += of_element;
            x[j] = weighted(weight, derivative);
          }
          sum += value;
          if (gradient) store<Prediction>(gradient + span.start_of(i + k * kWideThreads), x);
        }
      });
    } else if (gradient) {
      const Real zeros[step] = {};
      for (int64_t i = threadIdx.x; i < span.steps; i += kWideThreads) {
        store<Prediction>(gradient + span.start_of(i), zeros);
      }
    }
    sum = across_block<kWideThreads>(sum, Sum());
    if (threadIdx.x == 0) rows.loss[piece] = static_cast<Real>(sum);
  }
}

}  // namespace jaxloss::gpu
