// Which rows go in tiles, and how they are cut.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "gpu/core/alignment.h"
#include "gpu/core/regime.h"
#include "gpu/core/residency.h"
#include "gpu/rows/tiles.cuh"

namespace jaxloss::gpu {

constexpr int kTileBytes = 2560;               // as many rows as fit, but at least one for each team of a warp's lanes
constexpr int64_t kLongestTileOfLanes = 4224;  // of one row for each team; longer ones are shared by more lanes
constexpr int64_t kLongestTiledRow = 1056;
// Longer rows take less time where lanes hold them, or whole vectors of them: of an H200, where they are only read; and
// with a gradient, of 16-bit numbers and of float32.
constexpr int64_t kLongestReadInTiles = 768, kShortestRowHeld = 576, kShortestWideRowHeld = 1024;
constexpr int kHeldNumbers = 16;  // of the longest row that one thread holds in its registers

inline bool has_many_vectors(int64_t row_bytes) {
  return row_bytes >= kShortestWideRowHeld && row_bytes % kVectorBytes == 0;
}
inline bool better_held(int64_t row_bytes, int number_bytes, bool gradient) {
  if (!gradient) return row_bytes > kLongestReadInTiles;
  return number_bytes == 2 ? row_bytes >= kShortestRowHeld : has_many_vectors(row_bytes);
}

// The largest power of two, up to a vector's bytes, that divides the bytes of a row.
inline int row_unit(int64_t row_bytes) {
  return static_cast<int>(std::min<int64_t>(kVectorBytes, row_bytes & -row_bytes));
}

// How lanes that share rows go along them; `in_pairs` as `are_taken_in_pairs`, `turns` as of `TileTeam`.
struct TileWalk {
  int units_of_row, unit, lanes;  // units: of `unit` bytes, but in pairs of half as many
  bool in_pairs, turns;

  int units() const { return units_of_row / (in_pairs ? 2 : 1); }

  // How many threads of a warp at most read different words of one bank of shared memory at once, which serves 128
  // bytes of it, where each lane takes so many units of a row.
  int meeting(int segment) const {
    constexpr int banks = 32, word = 4;
    const int at_once = std::min(kWarp, banks * word / unit), teams = kWarp / lanes;
    int most = 0;
    for (int first = 0; first < kWarp; first += at_once) {
      int words_of_bank[banks] = {}, last_of_bank[banks] = {};
      for (int thread = first; thread < first + at_once; thread++) {
        const int row = thread % teams, begin = thread / teams * segment, end = std::min(begin + segment, units());
        if (begin >= end) continue;
        const int turn = turns ? tile_turn(unit, thread) % (end - begin) : 0;
        const int of_row = in_pairs ? (row * units_of_row + 1) / 2 : row * units();
        const int at = (of_row + begin + turn) * unit / word, bank = at % banks;
        if (words_of_bank[bank] > 0 && last_of_bank[bank] == at) continue;
        last_of_bank[bank] = at;
        most = std::max(most, ++words_of_bank[bank]);
      }
    }
    return most;
  }

  // How many units of a row each lane takes. Found once.
  int segment() const {
    static std::mutex mutex;
    static std::map<std::tuple<int, int, int, bool, bool>, int> known;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto [place, is_new] = known.try_emplace({units_of_row, unit, lanes, in_pairs, turns}, 0);
    if (is_new) place->second = best_segment();
    return place->second;
  }

 private:
  // As few as share the row, or some more if so fewer threads meet. What is made of a unit takes some eight times as
  // long as to read it.
  int best_segment() const {
    const auto time_of = [&](int length) { return length * (8 + meeting(length)); };
    const int least = (units() + lanes - 1) / lanes;
    int best = least;
    if (lanes == 1 || kWarp / lanes * unit >= 128) return best;  // threads that read at once have the same segment
    for (int longer = least + 1, time = time_of(least); longer * (8 + 1) < time; longer++) {
      if (const int of_longer = time_of(longer); of_longer < time) time = of_longer, best = longer;
    }
    return best;
  }
};

// Whether rows of an odd number of 16-bit numbers are so long that threads take two at once.
inline bool are_taken_in_pairs(int64_t row_bytes) { return row_bytes % 4 == 2 && row_bytes / 2 > kHeldNumbers; }

// Of rows with labels, read in units of so many bytes (see `TileWalk`), and a weight each if `weight` is not null;
// `rows` = 0 where rows are too long, or begin where no vector does.
inline Tiles tiles_of(int64_t row_bytes, int unit, bool in_pairs, bool turns, const void* logits, const void* index,
                      const void* weight, const void* gradient) {
  Tiles tiles = {};
  const auto at_vector = [](const void* pointer) { return bytes_past_vector(pointer) == 0; };
  if (row_bytes == 0 || row_bytes > kLongestTiledRow) return tiles;
  if (!at_vector(logits) || !at_vector(gradient) || !at_vector(index) || !at_vector(weight)) return tiles;

  tiles.lanes = 1;
  while (tiles.lanes < 4 && kWarp / tiles.lanes * row_bytes > kLongestTileOfLanes) tiles.lanes *= 2;
  const int units = static_cast<int>(row_bytes / unit);
  tiles.segment =
      TileWalk{units, in_pairs ? 2 * unit : unit, tiles.lanes, in_pairs, turns || unit == kVectorBytes}.segment();
  const int teams = kWarp / tiles.lanes, label_bytes = sizeof(int32_t);
  const int64_t bytes_a_row = row_bytes + (weight ? 2 : 1) * label_bytes;
  tiles.rows = static_cast<int>(std::max<int64_t>(1, kTileBytes / bytes_a_row / teams)) * teams;
  tiles.labels = tiles.rows * static_cast<int>(row_bytes);
  tiles.weights = tiles.labels + tiles.rows * label_bytes;
  const int end = tiles.weights + (weight ? tiles.rows * label_bytes : 0);
  tiles.stage = (end + 127) / 128 * 128;
  tiles.stages = gradient ? 3 : 2;
  return tiles;
}

// How many blocks of a kernel run at once; with one stage where it is compiled for GPUs whose threads copy. 0 where no
// block has room: one stage is no choice then, for the copy engine fills others ahead.
inline int resident_tile_blocks(const void* kernel, const Device& device, Tiles& tiles) {
  const auto resident = [&](int least_capability) {
    return resident_blocks(kernel, device, kTileThreads, tiles.shared_bytes(), least_capability);
  };
  if (compiled_for_hopper(kernel, device)) return resident(kHopper);
  tiles.stages = 1;
  return resident(0);
}

// How many blocks take that many tiles. In tests of the kernel a warp has more of them than stages, of few rows too.
inline int64_t tile_blocks(int64_t resident, int64_t tile_count) {
  const int64_t tiles_a_warp = asked_for() == Regime::tiles ? kMostTileStages + 2 : 1;
  return std::min(resident * kWaves, quotient_rounded_up(tile_count, kTileWarps * tiles_a_warp));
}

}  // namespace jaxloss::gpu
