// Very short rows of logits in tiles: every warp moves tiles of many rows through shared memory, whatever is made of
// them there.
//
// On Hopper and later the copy engine brings a tile in and takes its gradient, formed in its place, out. A warp has a
// stage for the tile that it works on, one for the next one, which comes in, and one for a gradient that goes out; it
// shares nothing with other warps. Before Hopper its threads copy, and it has one stage. A thread or a few take a row,
// whose numbers are read in units as large as rows of that width are aligned.
#pragma once

#include "gpu/core/async.cuh"
#include "gpu/core/reduce.cuh"
#include "gpu/core/vector.cuh"

namespace jaxloss::gpu {

constexpr int kTileWarps = 8;
constexpr int kTileThreads = kTileWarps * kWarp;
constexpr int kMostTileStages = 3;

// How rows are cut into tiles, and what is where in a stage. Every part of a tile begins and ends with a 16-byte
// vector.
struct Tiles {
  int rows;                    // in a tile
  int lanes;                   // that share a row: 1, 2, 4 or 8
  int stages;                  // of each warp
  int segment;                 // units of a row that a lane takes
  int labels, weights, stage;  // bytes from a stage's beginning to its labels, to its weights, and to the next stage
  size_t shared_bytes() const { return static_cast<size_t>(stage) * stages * kTileWarps; }
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
struct Barrier {};  // no thread waits at one
#endif

// `bytes` of a row, read and written at once.
template <int bytes, class Logit>
struct Unit {
  using Bits =
      std::conditional_t<bytes == 16, uint4,
                         std::conditional_t<bytes == 8, uint2, std::conditional_t<bytes == 4, uint32_t, uint16_t>>>;
  static constexpr int count = bytes / static_cast<int>(sizeof(Logit));

  // As they are stored, in words: of 16 bits two numbers each.
  static __device__ __forceinline__ void load(const Logit* from, uint32_t (&word)[bytes / 4 > 0 ? bytes / 4 : 1]) {
    static_assert(bytes >= 4);
    const Bits bits = *reinterpret_cast<const Bits*>(from);
    memcpy(word, &bits, bytes);
  }
  static __device__ __forceinline__ void load(const Logit* from, float* x) {
    const Bits bits = *reinterpret_cast<const Bits*>(from);
    Logit numbers[count];
    memcpy(numbers, &bits, bytes);
#pragma unroll
    for (int j = 0; j < count; j++) x[j] = number(numbers[j]);
  }
  static __device__ __forceinline__ void store(Logit* to, const float* x) {
    Logit numbers[count];
#pragma unroll
    for (int j = 0; j < count; j++) numbers[j] = stored<Logit>(x[j]);
    Bits bits;
    memcpy(&bits, numbers, bytes);
    *reinterpret_cast<Bits*>(to) = bits;
  }
};

// The arrays that tiles are cut from: of each tile `logits_bytes` of the first and of the last one.
struct TiledArrays {
  const void* logits;
  const int32_t* index;  // one per row
  const float* weight;   // one per row, or null
  void* gradient;        // or null
  uint32_t logits_bytes;
};

template <class Rows>
__device__ __forceinline__ TiledArrays tiled_arrays(const Rows& rows, const float* weights, void* gradient,
                                                    const Tiles& tiles) {
  return {rows.logits, rows.target.index, weights, gradient,
          tiles.rows * static_cast<uint32_t>(rows.classes * sizeof(*rows.logits))};
}

// The stages of one warp, and what fills and empties them.
class TileStages {
 public:
  __device__ __forceinline__ TileStages(const TiledArrays& arrays, const Tiles& tiles, unsigned char* stages,
                                        Barrier* filled)
      : arrays_(arrays), tiles_(tiles), stages_(stages), filled_(filled), lane_(threadIdx.x % kWarp) {}

  // work(first_row, stage) of tiles first, first + stride, … by the whole warp, which leaves their gradients in the
  // logits' places.
  template <class Work>
  __device__ __forceinline__ void run(int64_t first, int64_t tile_count, int64_t stride, Work work) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (lane_ == 0) {
      for (int i = 0; i < kMostTileStages; i++) filled_[i].initialize(1);
      fence_barrier_initialization();
    }
    __syncwarp();
    run_fed(first, tile_count, stride, work);
#else
    run_alone(first, tile_count, stride, work);
#endif
  }

 private:
  const TiledArrays& arrays_;
  const Tiles& tiles_;
  unsigned char* stages_;
  Barrier* filled_;
  int lane_;

  __device__ __forceinline__ const unsigned char* logits_of(int64_t tile) const {
    return static_cast<const unsigned char*>(arrays_.logits) + tile * arrays_.logits_bytes;
  }
  __device__ __forceinline__ unsigned char* gradient_of(int64_t tile) const {
    return static_cast<unsigned char*>(arrays_.gradient) + tile * arrays_.logits_bytes;
  }

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  template <class Work>
  __device__ __forceinline__ void run_fed(int64_t first, int64_t tile_count, int64_t stride, Work& work) {
    constexpr int ahead = 2;
    const int stages = tiles_.stages;
    if (lane_ == 0) {
      for (int i = 0; i < ahead; i++) {
        if (first + i * stride < tile_count) fetch(first + i * stride, i);
      }
    }
    int stage = 0, phase = 0;
    for (int64_t tile = first; tile < tile_count; tile += stride) {
      filled_[stage].wait(phase);
      work(tile * tiles_.rows, stages_ + stage * tiles_.stage);
      fence_before_copy();
      __syncwarp();
      if (lane_ == 0) {
        if (arrays_.gradient) {
          copy_to_global(gradient_of(tile), stages_ + stage * tiles_.stage, arrays_.logits_bytes);
          close_copy_group();
          wait_for_reads_of_copies<1>();
        }
        const int next = stage + ahead < stages ? stage + ahead : stage + ahead - stages;
        if (tile + ahead * stride < tile_count) fetch(tile + ahead * stride, next);
      }
      if (++stage == stages) {
        stage = 0;
        phase++;
      }
    }
    if (arrays_.gradient && lane_ == 0) wait_for_copies();
  }

  __device__ __forceinline__ void fetch(int64_t tile, int stage) {
    unsigned char* to = stages_ + stage * tiles_.stage;
    const uint32_t label_bytes = tiles_.rows * sizeof(int32_t);
    filled_[stage].arrive_and_expect(arrays_.logits_bytes + (arrays_.weight ? 2 : 1) * label_bytes);
    copy_to_shared(to, logits_of(tile), arrays_.logits_bytes, filled_[stage]);
    copy_to_shared(to + tiles_.labels, arrays_.index + tile * tiles_.rows, label_bytes, filled_[stage]);
    if (arrays_.weight) {
      copy_to_shared(to + tiles_.weights, arrays_.weight + tile * tiles_.rows, label_bytes, filled_[stage]);
    }
  }
#endif

  // The same in one stage, which the warp fills and empties.
  template <class Work>
  __device__ __forceinline__ void run_alone(int64_t first, int64_t tile_count, int64_t stride, Work& work) {
    const uint32_t label_bytes = tiles_.rows * sizeof(int32_t);
    for (int64_t tile = first; tile < tile_count; tile += stride) {
      copy(stages_, logits_of(tile), arrays_.logits_bytes);
      copy(stages_ + tiles_.labels, arrays_.index + tile * tiles_.rows, label_bytes);
      if (arrays_.weight) copy(stages_ + tiles_.weights, arrays_.weight + tile * tiles_.rows, label_bytes);
      __syncwarp();
      work(tile * tiles_.rows, stages_);
      __syncwarp();
      if (arrays_.gradient) {
        copy(gradient_of(tile), stages_, arrays_.logits_bytes);
        __syncwarp();
      }
    }
  }

  // By all lanes; sizes and addresses are multiples of a vector's.
  __device__ __forceinline__ void copy(void* to, const void* from, uint32_t bytes) const {
    const uint4* vectors = static_cast<const uint4*>(from);
#pragma unroll 4
    for (uint32_t i = lane_; i < bytes / kVectorBytes; i += kWarp) static_cast<uint4*>(to)[i] = vectors[i];
  }
};

// How many units after its first one a thread begins, of as many as it has: see `TileTeam`.
__host__ __device__ constexpr int tile_turn(int unit, int lane) {
  return unit == kVectorBytes ? lane & 7 : lane * (unit < 4 ? 4 / unit : 1);
}

// Which units of which rows of a tile are a thread's: thread m · teams + r has segment m of row r, so that threads
// beside each other read from other banks (see `TileWalk`). The rows of a tile are a multiple of `teams`.
// Each begins with another one of its units, or rows of an even number of vectors would meet in a bank; so would rows
// of any even number of words, if units are not as large as the rows are aligned (`turns`).
template <int unit, bool turns = unit == kVectorBytes>
struct TileTeam {
  int teams, row, member;  // teams: threads that begin a row each
  int begin, end;          // of units
  int first;               // of them, where this thread begins

  __device__ __forceinline__ TileTeam(const Tiles& tiles, int units) {
    const int lane = threadIdx.x % kWarp;
    teams = kWarp >> (__ffs(tiles.lanes) - 1);
    row = lane & (teams - 1);
    member = lane >> (__ffs(teams) - 1);
    begin = member * tiles.segment;
    end = max(begin, min(begin + tiles.segment, units));
    first = turns && end > begin ? begin + tile_turn(unit, lane) % (end - begin) : begin;
  }

  __device__ __forceinline__ bool leads() const { return member == 0; }
  // Until all members of a row are there.
  __device__ __forceinline__ void wait() const {
    if (teams < kWarp) __syncwarp();
  }
  template <class Value, class Combine>
  __device__ __forceinline__ Value across(Value value, Combine combine) const {
    for (int mask = teams; mask < kWarp; mask *= 2) value = combine(value, from_lane_xor(value, mask));
    return value;
  }

  // body(Count<n>, places) for each n of this thread's units: `most` while there are as many, then half of that, …
  template <int most, class Body>
  __device__ __forceinline__ void for_units(Body body) const {
    int i = begin;
#pragma unroll 1
    for (; i + most <= end; i += most) at_units(Count<most>{}, i, body);
    if constexpr (most > 1) for_rest<most / 2>(i, body);
  }

 private:
  template <int batch, class Body>
  __device__ __forceinline__ void for_rest(int i, Body body) const {
    if (i + batch <= end) {
      at_units(Count<batch>{}, i, body);
      i += batch;
    }
    if constexpr (batch > 1) for_rest<batch / 2>(i, body);
  }
  template <int batch, class Body>
  __device__ __forceinline__ void at_units(Count<batch> count, int i, Body body) const {
    int place[batch];
#pragma unroll
    for (int k = 0; k < batch; k++) {
      place[k] = i + k;
      if (turns) {
        place[k] += first - begin;
        if (place[k] >= end) place[k] -= end - begin;
      }
    }
    body(count, place);
  }
};

// Calls worker(first_row, stage) for each tile; each warp has a worker of its own, and warp w of all warps takes tiles
// w, w + warps, …
template <class Worker>
__device__ __forceinline__ void for_tiles(const TiledArrays& arrays, const Tiles& tiles, int64_t tile_count,
                                          Worker& worker) {
  extern __shared__ __align__(128) unsigned char all_stages[];
  __shared__ Barrier filled[kTileWarps][kMostTileStages];
  const int warp = threadIdx.x / kWarp;
  TileStages stages(arrays, tiles, all_stages + warp * tiles.stages * tiles.stage, filled[warp]);
  stages.run(blockIdx.x + static_cast<int64_t>(warp) * gridDim.x, tile_count,
             static_cast<int64_t>(gridDim.x) * kTileWarps,
             [&](int64_t first_row, unsigned char* stage) { worker(first_row, stage); });
}

// Part b of the sums of rows' losses is that of block b, of whose threads each has a sum; no part is left out.
template <class Real>
__device__ __forceinline__ void write_sums(double sum_of_thread, Real* sums, int64_t parts) {
  const double sum = across_block<kTileThreads>(sum_of_thread, Sum());
  for (int64_t part = blockIdx.x + static_cast<int64_t>(threadIdx.x) * gridDim.x; part < parts;
       part += static_cast<int64_t>(gridDim.x) * kTileThreads) {
    sums[part] = part == blockIdx.x ? static_cast<Real>(sum) : Real(0);
  }
}

}  // namespace jaxloss::gpu
