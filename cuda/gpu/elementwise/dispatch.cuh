// The elementwise losses: which kernel takes which rows.
#pragma once

#include "gpu/core/device.h"
#include "gpu/elementwise/binary.cuh"
#include "gpu/elementwise/narrow.cuh"
#include "gpu/elementwise/wide.cuh"
#include "gpu/launch.h"
#include "tasks.h"

namespace jaxloss::gpu {

constexpr int64_t kMaxGridX = 0x7fffffff, kMaxGridY = 0xffff;  // and along z

enum class Rows { singles, tile, wide };

// How many rows a tile must be a multiple of for each to begin where 16-byte vectors do, if the first one does.
inline int64_t aligned_rows(int64_t width, int per_vector) {
  int64_t rows = 1;
  while (rows * width % per_vector) rows *= 2;
  return rows;
}

// A block a row wastes less than half of its threads from four elements a thread on.
inline Rows choice(int64_t width, int64_t parts) {
  if (parts == 1 && width == 1) return Rows::singles;
  if (parts == 1 && width > 0 && width < 4 * kWideThreads) return Rows::tile;
  return Rows::wide;
}

template <class Loss, class Prediction, class Target>
cudaError_t launch_tiles(cudaStream_t stream, const Loss& loss,
                         const ElementwiseRows<Prediction, Target, Loss::parameter_count>& rows) {
  constexpr int step = kPerVector<Prediction>;
  const int64_t multiple = aligned_rows(rows.width, step), fitting = kTileElements / rows.width;
  const bool fits = fitting >= multiple;
  const int64_t tile_rows = fits ? fitting / multiple * multiple : fitting;
  const auto address = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
  const bool vectors =
      fits && (address(rows.prediction) | address(rows.target) | address(rows.gradient)) % kVectorBytes == 0;
  int lanes = 1;
  while (2 * lanes <= rows.width && lanes < kWarp) lanes *= 2;
  const int64_t blocks = quotient_rounded_up(rows.rows, tile_rows);
  if (blocks > kMaxGridX) return cudaErrorInvalidConfiguration;
  elementwise_tile<<<static_cast<unsigned>(blocks), kNarrowThreads, 0, stream>>>(
      loss, rows, static_cast<int>(tile_rows), lanes, vectors);
  return cudaGetLastError();
}

template <class Loss, class Prediction, class Target>
cudaError_t launch_singles(cudaStream_t stream, const Loss& loss,
                           const ElementwiseRows<Prediction, Target, Loss::parameter_count>& rows) {
  const int64_t blocks = quotient_rounded_up(quotient_rounded_up(rows.rows, kPerVector<Prediction>), kNarrowThreads);
  const unsigned grid = static_cast<unsigned>(blocks < kMaxGridX ? blocks : kMaxGridX);
  if constexpr (kBoundByArithmetic<Loss> || Loss::parameter_count > 0) {
    elementwise_singles_in_turn<<<grid, kNarrowThreads, 0, stream>>>(loss, rows);
  } else {
    elementwise_singles<<<grid, kNarrowThreads, 0, stream>>>(loss, rows);
  }
  return cudaGetLastError();
}

template <class Loss, class Prediction, class Target>
cudaError_t launch_wide(cudaStream_t stream, const Loss& loss,
                        const ElementwiseRows<Prediction, Target, Loss::parameter_count>& rows) {
  const int64_t part_size = part_width(rows.width, rows.parts);
  const int64_t along_y = rows.rows < kMaxGridY ? rows.rows : kMaxGridY;
  const int64_t along_z = quotient_rounded_up(rows.rows, along_y);
  if (part_size > kWidePart || rows.parts > kMaxGridX || along_z > kMaxGridY) {
    return cudaErrorInvalidConfiguration;
  }
  const dim3 grid(static_cast<unsigned>(rows.parts), static_cast<unsigned>(along_y), static_cast<unsigned>(along_z));
  const auto kernel = rows.gradient ? elementwise_wide<true, Loss, Prediction, Target>
                                    : elementwise_wide<false, Loss, Prediction, Target>;
  kernel<<<grid, kWideThreads, 0, stream>>>(loss, rows, static_cast<int>(part_size));
  return cudaGetLastError();
}

// The functor that the kernels call for a loss: its own, or one written for a GPU.
template <class Real, class Loss>
const Loss& on_gpu(const Loss& loss) {
  return loss;
}
template <class Real, std::enable_if_t<std::is_same_v<Real, float>, int> = 0>
BinaryCrossEntropyOfFloat on_gpu(const BinaryCrossEntropy& loss) {
  return BinaryCrossEntropyOfFloat(loss);
}

template <class Loss, class Prediction, class Target>
cudaError_t launch(cudaStream_t stream, const Loss& loss,
                   const ElementwiseRows<Prediction, Target, Loss::parameter_count>& rows) {
  if (rows.rows == 0 || rows.parts == 0) return cudaSuccess;
  const auto& functor = on_gpu<Accumulator<Prediction>>(loss);
  switch (choice(rows.width, rows.parts)) {
    case Rows::singles:
      return launch_singles(stream, functor, rows);
    case Rows::tile:
      return launch_tiles(stream, functor, rows);
    default:
      return launch_wide(stream, functor, rows);
  }
}

// Names the launcher of every task of these losses, so that the compiler writes them all.
template <class Task>
using Launcher = cudaError_t (*)(cudaStream_t, const typename Task::Loss&, const decltype(Task::rows)&);
template <class TaskList>
struct LaunchersOf;
template <class... Task>
struct LaunchersOf<List<Task...>> {
  const void* of_task[sizeof...(Task)] = {reinterpret_cast<const void*>(static_cast<Launcher<Task>>(&launch))...};
};
template <class Losses>
using Launchers = LaunchersOf<typename ElementwiseTasksOfAll<Losses>::type>;

}  // namespace jaxloss::gpu
