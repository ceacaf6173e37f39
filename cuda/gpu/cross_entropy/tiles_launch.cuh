// Which rows of cross entropy go through tiles.
#pragma once

#include "gpu/cross_entropy/registers.cuh"
#include "gpu/cross_entropy/sums.cuh"
#include "gpu/cross_entropy/tiles.cuh"
#include "gpu/rows/tiles_launch.cuh"

namespace jaxloss::gpu {

// Whether rows of that size take less time where each thread loads whole vectors than in tiles: on an H100; and on an
// H200, where the same rows are 1.14 – 1.6 reads or copies in registers, 1.04 – 1.2 in tiles.
template <class Logit>
bool better_by_vectors(int64_t row_bytes, bool gradient, const Device& device) {
  const int64_t vectors = row_bytes / kVectorBytes;
  if (device.has_fast_memory()) return better_held(row_bytes, sizeof(Logit), gradient);
  if (row_bytes % kVectorBytes == 0) return vectors >= (gradient && sizeof(Logit) == 2 ? 8 : 4);
  return vectors >= (!gradient ? 12 : sizeof(Logit) == 4 ? 7 : 32);
}

// rows = 0 where none can, or where rows have weights that a few share.
template <class Logit>
Tiles tiles_of(const CrossEntropyRows<Logit, ClassIndices>& rows, const Device& device) {
  const int64_t row_bytes = rows.classes * sizeof(Logit);
  const bool weight_a_row = rows.rows_per_weight == 1;
  if (!weight_a_row && rows.rows_per_weight < rows.rows) return {};
  if (rows.loss && better_by_vectors<Logit>(row_bytes, rows.gradient, device)) return {};
  return tiles_of(row_bytes, row_unit(row_bytes), are_taken_in_pairs(row_bytes), false, rows.logits, rows.target.index,
                  weight_a_row ? rows.row_weight : nullptr, rows.gradient);
}

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
  Tiles tiles = tiles_of(rows, device);
  if (tiles.rows == 0 || (!rows.loss && rows.parts < 2)) return cudaErrorNotSupported;
  const TilesKernel<Logit> kernel =
      tiles_kernel<kGradient, Logit>(row_unit(rows.classes * sizeof(Logit)), rows.classes);
  const int64_t resident = resident_tile_blocks(reinterpret_cast<const void*>(kernel), device, tiles);
  const int64_t tile_count = rows.rows / tiles.rows;
  if (resident == 0 || tile_count < fewest * resident * kTileWarps) return cudaErrorNotSupported;
  auto rest = rows_from(tile_count * tiles.rows, rows);
  if (!rows.loss) {
    if (tile_count == 0) return cudaErrorNotSupported;
    rest.sums += --rows.parts;
    rest.parts = 1;
  }
  if (tile_count > 0) {
    int64_t blocks = tile_blocks(resident, tile_count);
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
