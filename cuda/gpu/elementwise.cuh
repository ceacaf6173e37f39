// The elementwise losses: which kernel takes which rows.
#pragma once

#include "gpu/elementwise_narrow.cuh"
#include "gpu/elementwise_wide.cuh"
#include "gpu/launch.h"
#include "tasks.h"

namespace jaxloss::gpu {

constexpr int64_t kMostBlocks = 0x7fffffff;

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

inline int64_t quotient_rounded_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

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
  if (blocks > kMostBlocks) return cudaErrorInvalidConfiguration;
  elementwise_tile<<<static_cast<unsigned>(blocks), kNarrowThreads, 0, stream>>>(
      loss, rows, static_cast<int>(tile_rows), lanes, vectors);
  return cudaGetLastError();
}

template <class Loss, class Prediction, class Target>
cudaError_t launch(cudaStream_t stream, const Loss& loss,
                   const ElementwiseRows<Prediction, Target, Loss::parameter_count>& rows) {
  if (rows.rows == 0 || rows.parts == 0) return cudaSuccess;
  const auto grid = [](int64_t blocks) { return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks); };
  switch (choice(rows.width, rows.parts)) {
    case Rows::singles: {
      const int64_t blocks =
          quotient_rounded_up(quotient_rounded_up(rows.rows, kPerVector<Prediction>), kNarrowThreads);
      if constexpr (kBoundByArithmetic<Loss> || Loss::parameter_count > 0) {
        elementwise_singles_in_turn<<<grid(blocks), kNarrowThreads, 0, stream>>>(loss, rows);
      } else {
        elementwise_singles<<<grid(blocks), kNarrowThreads, 0, stream>>>(loss, rows);
      }
      return cudaGetLastError();
    }
    case Rows::tile:
      return launch_tiles(stream, loss, rows);
    default:
      elementwise_wide<<<grid(rows.rows * rows.parts), kWideThreads, 0, stream>>>(loss, rows,
                                                                                  part_width(rows.width, rows.parts));
      return cudaGetLastError();
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
