// Elementwise losses: a block for each part of a row, or for narrow rows a few lanes for each row.
#include <algorithm>
#include <tuple>

#include "gpu/launch.h"
#include "gpu/reduce.cuh"
#include "gpu/vector.cuh"

namespace jaxloss::gpu {
namespace {

constexpr int kThreads = 256;

// The elements of one part that fall to one of `threads` threads: returns the sum of their losses, stores their gradients.
// Each array is read once. Four steps are in flight before the first is used.
template <int kWidth, bool kGradient, class Loss, class Prediction, class Target>
__device__ __forceinline__ Accumulator<Prediction> elements(const Loss& loss, const Prediction* prediction,
                                                            const Target* target, Prediction* gradient,
                                                            Accumulator<Prediction> weight, int64_t steps, int thread,
                                                            int threads) {
  using Real = Accumulator<Prediction>;
  constexpr int kUnroll = 4;
  Real sum = 0;
  for (int64_t base = thread; base < steps; base += static_cast<int64_t>(kUnroll) * threads) {
    Step<Prediction, kWidth> x[kUnroll];
    Step<Target, kWidth> a[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      const int64_t step = base + static_cast<int64_t>(u) * threads;
      if (step < steps) {
        x[u] = Step<Prediction, kWidth>(prediction + step * kWidth);
        a[u] = Step<Target, kWidth>(target + step * kWidth);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      const int64_t step = base + static_cast<int64_t>(u) * threads;
      if (step < steps) {
        Step<Prediction, kWidth> dx;
#pragma unroll
        for (int i = 0; i < kWidth; i++) {
          Real value, derivative;
          loss(static_cast<Real>(x[u][i]), static_cast<Real>(a[u][i]), value, derivative);
          sum += value;
          if constexpr (kGradient) dx.set(i, weighted(weight, derivative));
        }
        if constexpr (kGradient) dx.store(gradient + step * kWidth);
      }
    }
  }
  return sum;
}

template <int kWidth, class Stored>
__device__ __forceinline__ void zeros(Stored* to, int64_t steps, int thread, int threads) {
  Step<Stored, kWidth> zero;
#pragma unroll
  for (int i = 0; i < kWidth; i++) zero.set(i, 0);
  for (int64_t step = thread; step < steps; step += threads) zero.store(to + step * kWidth);
}

// A block a part.
template <int kWidth, bool kGradient, class Loss, class Prediction, class Target>
__global__ void __launch_bounds__(kThreads) wide_rows(Loss loss, ElementwiseRows<Prediction, Target> rows) {
  using Real = Accumulator<Prediction>;
  const int64_t part_size = part_width(rows.width, rows.parts), all_parts = rows.rows * rows.parts;
  for (int64_t part = blockIdx.x; part < all_parts; part += gridDim.x) {
    const int64_t row = part / rows.parts, first = (part - row * rows.parts) * part_size;
    const int64_t count = max(int64_t{0}, min(part_size, rows.width - first)), offset = row * rows.width + first;
    const Real weight = rows.row_weight[row];
    Prediction* gradient = kGradient ? rows.gradient + offset : nullptr;
    Real sum = 0;
    if (!taken_out(weight)) {
      sum = elements<kWidth, kGradient>(loss, rows.prediction + offset, rows.target + offset, gradient, weight,
                                        count / kWidth, threadIdx.x, kThreads);
    } else if constexpr (kGradient) {
      zeros<kWidth>(gradient, count / kWidth, threadIdx.x, kThreads);
    }
    sum = over_block(sum, Real(0));
    if (threadIdx.x == 0) rows.loss[part] = sum;
  }
}

// `kLanes` lanes a row, one part a row.
template <int kLanes, int kWidth, bool kGradient, class Loss, class Prediction, class Target>
__global__ void __launch_bounds__(kThreads) narrow_rows(Loss loss, ElementwiseRows<Prediction, Target> rows) {
  using Real = Accumulator<Prediction>;
  constexpr int kRows = kThreads / kLanes;
  const int lane = threadIdx.x % kLanes;
  // All lanes of a warp go round together, for the shuffles.
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kRows; base < rows.rows; base += static_cast<int64_t>(gridDim.x) * kRows) {
    const int64_t row = base + threadIdx.x / kLanes, offset = row * rows.width;
    Real sum = 0;
    if (row < rows.rows) {
      const Real weight = rows.row_weight[row];
      Prediction* gradient = kGradient ? rows.gradient + offset : nullptr;
      if (!taken_out(weight)) {
        sum = elements<kWidth, kGradient>(loss, rows.prediction + offset, rows.target + offset, gradient, weight,
                                          rows.width / kWidth, lane, kLanes);
      } else if constexpr (kGradient) {
        zeros<kWidth>(gradient, rows.width / kWidth, lane, kLanes);
      }
    }
    sum = over_lanes<kLanes>(sum);
    if (lane == 0 && row < rows.rows) rows.loss[row] = sum;
  }
}

constexpr int64_t kNarrow = 256;  // a row of at most so many elements does not fill a block

template <int kWidth, bool kGradient, class Loss, class Prediction, class Target>
void launch_width(cudaStream_t stream, const Loss& loss, const ElementwiseRows<Prediction, Target>& rows) {
  const auto blocks = [](int64_t wanted) { return static_cast<unsigned>(std::min<int64_t>(wanted, INT32_MAX)); };
  if (rows.parts == 1 && rows.width <= kNarrow) {
    if (rows.width <= 8) {
      narrow_rows<1, kWidth, kGradient><<<blocks((rows.rows + kThreads - 1) / kThreads), kThreads, 0, stream>>>(loss, rows);
    } else {
      constexpr int kLanes = 8, kRows = kThreads / kLanes;
      narrow_rows<kLanes, kWidth, kGradient><<<blocks((rows.rows + kRows - 1) / kRows), kThreads, 0, stream>>>(loss, rows);
    }
  } else {
    wide_rows<kWidth, kGradient><<<blocks(rows.rows * rows.parts), kThreads, 0, stream>>>(loss, rows);
  }
}

}  // namespace

template <class Loss, class Prediction, class Target>
cudaError_t launch(cudaStream_t stream, const Loss& loss, const ElementwiseRows<Prediction, Target>& rows) {
  if (rows.rows == 0) return cudaSuccess;
  constexpr int kVector = kVectorBytes / sizeof(Prediction);
  const bool aligned = rows_align(rows.prediction, rows.width, kVector) && rows_align(rows.target, rows.width, kVector) &&
                       (!rows.gradient || rows_align(rows.gradient, rows.width, kVector));
  const auto of_width = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    rows.gradient ? launch_width<kWidth, true>(stream, loss, rows) : launch_width<kWidth, false>(stream, loss, rows);
  };
  if (aligned) {
    of_width(std::integral_constant<int, kVector>{});
  } else {
    of_width(std::integral_constant<int, 1>{});
  }
  return cudaGetLastError();
}

namespace {

template <class... Task>
auto instantiated(List<Task...>) {
  return std::make_tuple(
      static_cast<cudaError_t (*)(cudaStream_t, const typename Task::Loss&, const decltype(Task::rows)&)>(&launch)...);
}

[[gnu::used]] const auto instances = instantiated(ElementwiseTasks{});

}  // namespace

}  // namespace jaxloss::gpu
