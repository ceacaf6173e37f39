// Elementwise losses of narrow rows, in one part each: a block takes many rows, which lie one after the other in
// memory, and reads and writes them as if they were one.
#pragma once

#include "gpu/core/reduce.cuh"
#include "gpu/core/vector.cuh"
#include "gpu/elementwise/parameters.cuh"
#include "rows.h"

namespace jaxloss::gpu {

constexpr int kNarrowThreads = 256;
constexpr int kTileElements = 4096;

// Block b takes `tile_rows` rows from row b · tile_rows on, of up to `kTileElements` elements together. Elements are
// read once (those of masked rows too, where they share a vector with others, to no effect), gradients written once.
// `vectors`: every tile begins at an aligned address of every array. Each row's losses are summed by `lanes` threads, a
// power of two. (2 blocks in double: else the compiler would rather spill registers than give a thread more of them.)
template <class Loss, class Prediction, class Target>
__global__ void __launch_bounds__(kNarrowThreads, sizeof(Accumulator<Prediction>) == 8 ? 2 : 0)
    elementwise_tile(Loss loss, ElementwiseRows<Prediction, Target, Loss::parameter_count> rows, int tile_rows,
                     int lanes, bool vectors) {
  using Real = Accumulator<Prediction>;
  constexpr int step = kPerVector<Prediction>;
  __shared__ __align__(kVectorBytes) Real value_of[kTileElements];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * tile_rows;
  const int width = static_cast<int>(rows.width);
  const int row_count = static_cast<int>(min(static_cast<int64_t>(tile_rows), rows.rows - first_row));
  const int count = row_count * width;
  const Prediction* prediction = rows.prediction + first_row * width;
  const Target* target = rows.target + first_row * width;
  Prediction* gradient = rows.gradient ? rows.gradient + first_row * width : nullptr;
  const Real* weight_of = rows.row_weight + first_row;
  ParametersAlong<Real, Loss::parameter_count> parameters(rows.parameters, rows.rows);

  for (int i = threadIdx.x * step; i < count; i += kNarrowThreads * step) {
    const bool whole = vectors && i + step <= count;
    Real x[step], a[step], value[step];
    if (whole) {
      load<step, Caching::evict_first>(prediction + i).numbers(x);
      load<step, Caching::evict_first>(target + i).numbers(a);
    } else {
#pragma unroll
      for (int k = 0; k < step; k++) {
        x[k] = i + k < count ? number(prediction[i + k]) : Real(0);
        a[k] = i + k < count ? number(target[i + k]) : Real(0);
      }
    }
    int row = i / width, column = i - row * width;
    Real weight = weight_of[row];
    bool out = is_masked(weight);
    parameters.to_row(first_row + row);
    parameters.to_element(first_row * width + i);
#pragma unroll
    for (int k = 0; k < step; k++) {
      Real derivative;
      loss(x[k], a[k], parameters.number, value[k], derivative);
      if (out) value[k] = 0;
      x[k] = weighted(weight, derivative);
      if (++column == width && k + 1 < step) {
        column = 0;
        if (++row < row_count) {
          weight = weight_of[row];
          parameters.to_row(first_row + row);
        }
        out = is_masked(weight);
      }
      if (k + 1 < step) parameters.to_next_element();
    }
    store_shared<Real>(value_of + i, value);
    if (gradient && whole) {
      store<Prediction>(gradient + i, x);
    } else if (gradient) {
#pragma unroll
      for (int k = 0; k < step; k++) {
        if (i + k < count) gradient[i + k] = stored<Prediction>(x[k]);
      }
    }
  }
  __syncthreads();

  const int lane = threadIdx.x % lanes;
  for (int first = 0; first < row_count; first += kNarrowThreads / lanes) {  // as often in every thread: lanes shuffle
    const int row = first + threadIdx.x / lanes;
    Real sum = 0;
    if (row < row_count) {
      for (int column = lane; column < width; column += lanes) sum += value_of[row * width + column];
    }
    sum = across_lanes(sum, lanes, Sum());
    if (lane == 0 && row < row_count) rows.loss[first_row + row] = sum;
  }
}

// One row of one element.
template <class Loss, class Prediction, class Target>
__device__ __forceinline__ void elementwise_single(
    const Loss& loss, const ElementwiseRows<Prediction, Target, Loss::parameter_count>& rows, int64_t row,
    ParametersAlong<Accumulator<Prediction>, Loss::parameter_count>& parameters) {
  using Real = Accumulator<Prediction>;
  const Real weight = rows.row_weight[row];
  Real value = 0, derivative = 0;
  if (!is_masked(weight)) {
    parameters.to_row(row);
    parameters.to_element(row);
    loss(number(rows.prediction[row]), number(rows.target[row]), parameters.number, value, derivative);
  }
  rows.loss[row] = value;
  if (rows.gradient) rows.gradient[row] = stored<Prediction>(weighted(weight, derivative));
}

// Rows of one element: weights and losses are read and written like the elements, one each. Masked ones are read
// too, to no effect.
template <class Loss, class Prediction, class Target>
__global__ void __launch_bounds__(kNarrowThreads)
    elementwise_singles(Loss loss, ElementwiseRows<Prediction, Target, Loss::parameter_count> rows) {
  using Real = Accumulator<Prediction>;
  constexpr int step = kPerVector<Prediction>;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kNarrowThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kNarrowThreads;
  ParametersAlong<Real, Loss::parameter_count> parameters(rows.parameters, rows.rows);
  const Span<Prediction> span(rows.rows, rows.prediction, rows.target, rows.row_weight, rows.loss,
                              rows.gradient ? rows.gradient : rows.prediction);
  for (int64_t i = thread; i < span.steps; i += threads) {
    const int64_t start = span.start_of(i);
    Real x[step], a[step], weight[step], value[step];
    load<step, Caching::evict_first>(rows.prediction + start).numbers(x);
    load<step, Caching::evict_first>(rows.target + start).numbers(a);
    load<step, Caching::evict_first>(rows.row_weight + start).numbers(weight);
#pragma unroll
    for (int k = 0; k < step; k++) {
      Real derivative;
      loss(x[k], a[k], parameters.number, value[k], derivative);
      if (is_masked(weight[k])) value[k] = 0;
      x[k] = weighted(weight[k], derivative);
    }
    store<Real>(rows.loss + start, value);
    if (rows.gradient) store<Prediction>(rows.gradient + start, x);
  }
  for (int64_t i = thread; i < span.edges; i += threads) elementwise_single(loss, rows, span.edge(i), parameters);
}

// The same of a loss with parameters, which may differ from row to row, or with long code: one row at a time. (4
// blocks: else the compiler would rather spill a register than give a thread more of them. In double it needs more.)
template <class Loss, class Prediction, class Target>
__global__ void __launch_bounds__(kNarrowThreads, sizeof(Accumulator<Prediction>) == 8 ? 2 : 4)
    elementwise_singles_in_turn(Loss loss, ElementwiseRows<Prediction, Target, Loss::parameter_count> rows) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kNarrowThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kNarrowThreads;
  ParametersAlong<Accumulator<Prediction>, Loss::parameter_count> parameters(rows.parameters, rows.rows);
  for (int64_t row = thread; row < rows.rows; row += threads) elementwise_single(loss, rows, row, parameters);
}

}  // namespace jaxloss::gpu
