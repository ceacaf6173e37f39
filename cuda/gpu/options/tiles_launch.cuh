// Which rows with options go in tiles.
#pragma once

#include "gpu/options/general_tiles.cuh"
#include "gpu/options/tiles.cuh"
#include "gpu/rows/tiles_launch.cuh"

namespace jaxloss::gpu {

// Whether all rows have the same options, and those of labels and the weights are of all or of one each.
template <class Logit>
bool all_alike(const CrossEntropyOptionRows<Logit, ClassIndices>& rows) {
  const auto by_all = [&](const auto& numbers) { return !numbers.given() || numbers.rows_per_number >= rows.rows; };
  const auto by_all_or_one = [&](const auto& numbers) { return by_all(numbers) || numbers.rows_per_number == 1; };
  return by_all(rows.label_smoothing) && by_all(rows.z_loss) && by_all(rows.margin) && by_all(rows.temperature) &&
         by_all(rows.num_classes) && (!rows.class_weights || rows.rows_per_class_weights >= rows.rows) &&
         by_all_or_one(rows.row_weight) && by_all_or_one(rows.second_label) && by_all_or_one(rows.mix);
}

// Those from row `first` on, of rows that are all alike.
template <class Logit>
CrossEntropyOptionRows<Logit, ClassIndices> rows_from(int64_t first, CrossEntropyOptionRows<Logit, ClassIndices> rows) {
  const auto move_on = [&](auto& numbers) {
    if (numbers.one_per_row()) numbers.number += first;
  };
  move_on(rows.row_weight), move_on(rows.second_label), move_on(rows.mix);
  rows.rows -= first;
  rows.logits += first * rows.classes;
  rows.target.index += first;
  if (rows.gradient) rows.gradient += first * rows.classes;
  for (auto* result : {&rows.loss, &rows.max, &rows.log_sum, &rows.nll}) {
    if (*result) *result += first;
  }
  return rows;
}

template <class Logit>
using OptionTilesKernel = void (*)(CrossEntropyOptionRows<Logit, ClassIndices>, Tiles, int64_t);

// Whether there are but a z-loss, a temperature and class weights, and losses alone are wanted, or with gradients.
template <class Logit>
bool is_linear(const CrossEntropyOptionRows<Logit, ClassIndices>& rows) {
  const bool others =
      rows.label_smoothing.given() || rows.second_label.given() || rows.margin.given() || rows.num_classes.given();
  return !others && !rows.max && !rows.log_sum && !rows.nll;
}

// How large the units are that a row is read in: as large as the rows are aligned, but that no kernel has one of 8.
template <class Logit>
int option_unit(const CrossEntropyOptionRows<Logit, ClassIndices>& rows) {
  const int unit = row_unit(rows.classes * sizeof(Logit));
  return !is_linear(rows) ? static_cast<int>(sizeof(Logit)) : unit == 8 ? 4 : unit;
}

template <class Logit>
OptionTilesKernel<Logit> tiles_kernel(const CrossEntropyOptionRows<Logit, ClassIndices>& rows) {
  if (!is_linear(rows)) return cross_entropy_options_general_tiles<Logit>;
  const int unit = option_unit(rows);
  const auto of_unit = [&](auto bytes) -> OptionTilesKernel<Logit> {
    constexpr int unit_bytes = decltype(bytes)::value, held = kHeldNumbers * sizeof(Logit) / unit_bytes;
    const int64_t units = rows.classes * sizeof(Logit) / unit_bytes;
    if constexpr (unit_bytes > sizeof(Logit)) {
      if (units == 1) return cross_entropy_options_tiles<unit_bytes, 1, true, Logit>;
    } else if constexpr (sizeof(Logit) == 2) {
      if (units == 3) return cross_entropy_options_tiles<unit_bytes, 3, true, Logit>;  // three classes
    }
    return units <= held ? cross_entropy_options_tiles<unit_bytes, held, false, Logit>
                         : cross_entropy_options_tiles<unit_bytes, 0, false, Logit>;
  };
  if constexpr (sizeof(Logit) == 2) {
    if (unit == 2) return of_unit(Count<2>{});
  }
  return unit == 4 ? of_unit(Count<4>{}) : of_unit(Count<16>{});
}

// Whole tiles of the rows, which are the rows that are left over then. cudaErrorNotSupported where no row was taken: of
// a softcap or statistics, where the device has no such kernel, or where not each of its warps would have `fewest`
// tiles.
template <class Logit>
cudaError_t launch_tiles(cudaStream_t stream, CrossEntropyOptionRows<Logit, ClassIndices>& rows, const Device& device,
                         int64_t fewest) {
  if (rows.known_max || rows.of_lse || rows.entropy || rows.softcap.given() || !all_alike(rows)) {
    return cudaErrorNotSupported;
  }
  const int64_t row_bytes = rows.classes * sizeof(Logit);
  // What is only read goes in tiles where it can, but for whole vectors.
  const bool held = rows.gradient ? better_held(row_bytes, sizeof(Logit), true) : has_many_vectors(row_bytes);
  if (!rows.sums && held) return cudaErrorNotSupported;
  const bool in_pairs = is_linear(rows) && are_taken_in_pairs(row_bytes);
  Tiles tiles = tiles_of(row_bytes, option_unit(rows), in_pairs, !is_linear(rows), rows.logits, rows.target.index,
                         rows.row_weight.one_per_row() ? rows.row_weight.number : nullptr, rows.gradient);
  if (tiles.rows == 0) return cudaErrorNotSupported;
  const OptionTilesKernel<Logit> kernel = tiles_kernel(rows);
  const int64_t resident = resident_tile_blocks(reinterpret_cast<const void*>(kernel), device, tiles);
  const int64_t tile_count = rows.rows / tiles.rows;
  if (resident == 0 || tile_count < std::max<int64_t>(1, fewest * resident * kTileWarps)) return cudaErrorNotSupported;
  CrossEntropyOptionRows<Logit, ClassIndices> rest = rows_from(tile_count * tiles.rows, rows);
  int64_t blocks = tile_blocks(resident, tile_count);
  if (rows.sums) {
    if (rows.parts < 2) return cudaErrorNotSupported;
    rest.sums += --rows.parts;
    rest.parts = 1;
    blocks = std::min(blocks, rows.parts);
  }
  kernel<<<static_cast<unsigned>(blocks), kTileThreads, tiles.shared_bytes(), stream>>>(rows, tiles, tile_count);
  rows = rest;
  return cudaGetLastError();
}

}  // namespace jaxloss::gpu
