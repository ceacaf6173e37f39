// Which rows go through tiles, and how they are cut.
#pragma once

#include <algorithm>

#include "gpu/core/alignment.h"
#include "gpu/core/residency.h"
#include "gpu/cross_entropy/registers.cuh"
#include "gpu/cross_entropy/sums.cuh"
#include "gpu/cross_entropy/tiles.cuh"

namespace jaxloss::gpu {

constexpr int kTileBytes = 2560;               // as many rows as fit, but at least one for each team of a warp's lanes
constexpr int64_t kLongestTileOfLanes = 4224;  // of one row for each team; longer ones are shared by more lanes
constexpr int64_t kLongestTiledRow = 1056;

// The largest power of two, up to a vector's bytes, that divides the bytes of a row.
inline int row_unit(int64_t row_bytes) {
  return static_cast<int>(std::min<int64_t>(kVectorBytes, row_bytes & -row_bytes));
}

// How many units of a row each of `lanes` lanes takes. Neighbouring threads hold rows beside each other, 32 / lanes of
// them, then the next segment of these: if segments begin as far apart as that many rows would, threads t and t + 1 are
// always as far apart, an odd number of units, and meet in no bank of shared memory.
inline int segment_of(int units, int lanes, int unit) {
  const int banks = 128 / unit;  // in units
  int segment = (units + lanes - 1) / lanes;
  if (lanes > 1) {
    while (segment % banks != units * (kWarp / lanes) % banks) segment++;
  }
  return segment;
}

// Whether rows of that size take less time in the registers of a warp, where each thread loads whole vectors.
template <class Logit>
bool better_in_registers(int64_t row_bytes, bool gradient) {
  const int64_t vectors = row_bytes / kVectorBytes;
  if (row_bytes % kVectorBytes == 0) return vectors >= (gradient && sizeof(Logit) == 2 ? 8 : 4);
  return vectors >= (gradient && sizeof(Logit) == 4 ? 7 : 12);
}

// rows = 0 where rows are too long or begin where no vector does, or where each is of a weight that a few share.
template <class Logit>
Tiles tiles_of(const CrossEntropyRows<Logit, ClassIndices>& rows) {
  Tiles tiles = {};
  const int64_t row_bytes = rows.classes * sizeof(Logit);
  const int unit = row_unit(row_bytes);
  const auto at_vector = [](const void* pointer) { return bytes_past_vector(pointer) == 0; };
  const bool weight_a_row = rows.rows_per_weight == 1;
  if (row_bytes == 0 || row_bytes > kLongestTiledRow) return tiles;
  if (!at_vector(rows.logits) || !at_vector(rows.gradient) || !at_vector(rows.target.index)) return tiles;
  if (weight_a_row ? !at_vector(rows.row_weight) : rows.rows_per_weight < rows.rows) return tiles;
  if (rows.loss && better_in_registers<Logit>(row_bytes, rows.gradient)) return tiles;

  tiles.lanes = 1;
  while (tiles.lanes < 4 && kWarp / tiles.lanes * row_bytes > kLongestTileOfLanes) tiles.lanes *= 2;
  tiles.segment = segment_of(static_cast<int>(row_bytes / unit), tiles.lanes, unit);
  const int teams = kWarp / tiles.lanes, label_bytes = sizeof(int32_t);
  const int64_t bytes_a_row = row_bytes + (weight_a_row ? 2 : 1) * label_bytes;
  tiles.rows = static_cast<int>(std::max<int64_t>(1, kTileBytes / bytes_a_row / teams)) * teams;
  tiles.labels = tiles.rows * static_cast<int>(row_bytes);
  tiles.weights = tiles.labels + tiles.rows * label_bytes;
  const int end = tiles.weights + (weight_a_row ? tiles.rows * label_bytes : 0);
  tiles.stage = (end + 127) / 128 * 128;
  tiles.stages = rows.gradient ? 3 : 2;
  return tiles;
}

// The longest row that one thread holds in its registers.
constexpr int kHeldNumbers = 16;

template <class Logit>
using TilesKernel = void (*)(CrossEntropyRows<Logit, ClassIndices>, Tiles, int64_t);

template <bool kGradient, class Logit>
TilesKernel<Logit> tiles_kernel(int unit, int64_t classes) {
  const auto of_unit = [&](auto bytes) -> TilesKernel<Logit> {
    constexpr int unit_bytes = decltype(bytes)::value, held = kHeldNumbers * sizeof(Logit) / unit_bytes;
    const int64_t units = classes * sizeof(Logit) / unit_bytes;
    if (units == 1) return cross_entropy_tiles<kGradient, unit_bytes, 1, true, Logit>;
    if (units == 3) return cross_entropy_tiles<kGradient, unit_bytes, 3, true, Logit>;
    return units <= held ? cross_entropy_tiles<kGradient, unit_bytes, held, false, Logit>
                         : cross_entropy_tiles<kGradient, unit_bytes, 0, false, Logit>;
  };
  if constexpr (sizeof(Logit) == 2) {
    if (unit == 2) return of_unit(Count<2>{});
  }
  return unit == 4 ? of_unit(Count<4>{}) : unit == 8 ? of_unit(Count<8>{}) : of_unit(Count<16>{});
}

// The rows from row `first` on.
template <class Logit>
CrossEntropyRows<Logit, ClassIndices> rows_from(int64_t first, CrossEntropyRows<Logit, ClassIndices> rows) {
  rows.rows -= first;
  rows.logits += first * rows.classes;
  rows.target.index += first;
  if (rows.loss) rows.loss += first;
  if (rows.max) rows.max += first;
  if (rows.log_sum) rows.log_sum += first;
  if (rows.gradient) rows.gradient += first * rows.classes;
  if (rows.rows_per_weight == 1) rows.row_weight += first;
  return rows;
}

// Whole tiles, and the rows that are left over through registers, or as the last part of the sums.
// cudaErrorNotSupported where the device has no such kernel, or where not each of its warps would have `fewest` tiles.
template <bool kGradient, class Logit>
cudaError_t launch_tiles(cudaStream_t stream, CrossEntropyRows<Logit, ClassIndices> rows, const Device& device,
                         int64_t fewest) {
  Tiles tiles = tiles_of(rows);
  if (tiles.rows == 0 || (!rows.loss && rows.parts < 2)) return cudaErrorNotSupported;
  const TilesKernel<Logit> kernel =
      tiles_kernel<kGradient, Logit>(row_unit(rows.classes * sizeof(Logit)), rows.classes);
  const auto find_resident = [&](int least_capability) {
    return resident_blocks(reinterpret_cast<const void*>(kernel), device, kTileThreads, tiles.shared_bytes(),
                           least_capability);
  };
  int64_t resident = find_resident(kHopper);
  if (resident == 0) {
    tiles.stages = 1;
    resident = find_resident(0);
  }
  const int64_t tile_count = rows.rows / tiles.rows;
  if (resident == 0 || tile_count < fewest * resident * kTileWarps) return cudaErrorNotSupported;
  auto rest = rows_from(tile_count * tiles.rows, rows);
  if (!rows.loss) {
    if (tile_count == 0) return cudaErrorNotSupported;
    rest.sums += --rows.parts;
    rest.parts = 1;
  }
  if (tile_count > 0) {
    int64_t blocks = std::min(resident * kWaves, quotient_rounded_up(tile_count, kTileWarps));
    if (!rows.loss) blocks = std::min(blocks, rows.parts);
    kernel<<<static_cast<unsigned>(blocks), kTileThreads, tiles.shared_bytes(), stream>>>(rows, tiles, tile_count);
    if (const cudaError_t error = cudaGetLastError()) return error;
  }
  if (!rows.loss) return launch_sums(stream, rest);
  return rest.rows > 0 ? launch_registers(stream, rest, registers_shape(rest)) : cudaSuccess;
}

template <class Logit>
cudaError_t launch_tiles(cudaStream_t stream, const CrossEntropyRows<Logit, ClassIndices>& rows, const Device& device,
                         int64_t fewest) {
  return rows.gradient ? launch_tiles<true>(stream, rows, device, fewest)
                       : launch_tiles<false>(stream, rows, device, fewest);
}

}  // namespace jaxloss::gpu
