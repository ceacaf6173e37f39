// Cross entropy of very short rows on Hopper and later: every warp moves tiles of many rows through shared memory.
//
// The copy engine brings a tile in and takes its gradient, formed in its place, out. A warp has a stage for the tile
// that it works on, one for the next one, which comes in, and one for a gradient that goes out; it shares nothing with
// other warps. A thread or a few take a row, whose numbers are read in units as large as rows of that width are
// aligned.
#pragma once

#include "gpu/async.cuh"
#include "gpu/softmax.cuh"
#include "gpu/vector.cuh"
#include "rows.h"

namespace jaxloss::gpu {

constexpr int kTileWarps = 8;
constexpr int kTileThreads = kTileWarps * kWarp;
template <bool kGradient>
constexpr int kTileStages = kGradient ? 3 : 2;

// How rows are cut into tiles, and what is where in a stage. Every part of a tile begins and ends with a 16-byte
// vector.
struct Tiles {
  int rows;                    // in a tile
  int lanes;                   // that share a row: 1, 2, 4 or 8
  int segment;                 // units of a row that a lane takes
  int labels, weights, stage;  // bytes from a stage's beginning to its labels, to its weights, and to the next stage
  template <bool kGradient>
  size_t shared_bytes() const {
    return static_cast<size_t>(stage) * kTileStages<kGradient> * kTileWarps;
  }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// `bytes` of a row, read and written at once.
template <int bytes, class Logit>
struct Unit {
  using Bits =
      std::conditional_t<bytes == 16, uint4,
                         std::conditional_t<bytes == 8, uint2, std::conditional_t<bytes == 4, uint32_t, uint16_t>>>;
  static constexpr int count = bytes / static_cast<int>(sizeof(Logit));

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

// body(Count<n>, i) for the n numbers from i on, of begin … end: `batch` of them, then half as many, …
template <int batch, class Body>
__device__ __forceinline__ void for_halving_batches(int begin, int end, Body body) {
  int i = begin;
  for (; i + batch <= end; i += batch) body(Count<batch>{}, i);
  if constexpr (batch > 1) for_halving_batches<batch / 2>(i, end, body);
}

// What one warp does. A row's logits are read once (those of a row taken out too, to no effect), its gradient is
// written once. A thread holds a row of up to `held` units in its registers; 0: rows are longer.
template <bool kGradient, int unit, int held, class Logit>
class TileWarp {
 public:
  __device__ __forceinline__ TileWarp(const CrossEntropyRows<Logit, ClassIndices>& rows, const Tiles& tiles,
                                      unsigned char* stages, Barrier* filled)
      : rows_(rows),
        tiles_(tiles),
        stages_(stages),
        filled_(filled),
        lane_(threadIdx.x % kWarp),
        classes_(static_cast<int>(rows.classes)),
        weight_a_row_(rows.rows_per_weight == 1),
        logits_bytes_(tiles.rows * static_cast<uint32_t>(rows.classes * sizeof(Logit))) {}

  __device__ __forceinline__ void run(int64_t first, int64_t tile_count, int64_t stride) {
    constexpr int stages = kTileStages<kGradient>, ahead = 2;
    if (lane_ == 0) {
      for (int i = 0; i < ahead; i++) {
        if (first + i * stride < tile_count) fetch(first + i * stride, i);
      }
    }
    int stage = 0, phase = 0;
    for (int64_t tile = first; tile < tile_count; tile += stride) {
      filled_[stage].wait(phase);
      if constexpr (held > 0) {
        work_in_registers(tile * tiles_.rows, stages_ + stage * tiles_.stage);
      } else {
        work(tile * tiles_.rows, stages_ + stage * tiles_.stage);
      }
      fence_before_copy();
      __syncwarp();
      if (lane_ == 0) {
        if constexpr (kGradient) {
          copy_to_global(reinterpret_cast<unsigned char*>(rows_.gradient) + tile * logits_bytes_,
                         stages_ + stage * tiles_.stage, logits_bytes_);
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
    if (kGradient && lane_ == 0) wait_for_copies();
  }

  // Of the losses of this thread's rows, where nobody wants them one by one.
  __device__ __forceinline__ double sum() const { return sum_; }

 private:
  const CrossEntropyRows<Logit, ClassIndices>& rows_;
  const Tiles& tiles_;
  unsigned char* stages_;
  Barrier* filled_;
  int lane_, classes_;
  bool weight_a_row_;
  uint32_t logits_bytes_;
  double sum_ = 0;
  static constexpr int per_unit = Unit<unit, Logit>::count;
  static constexpr int kBatch = unit == 16 ? 2 : unit == 8 ? 4 : 8;

  __device__ __forceinline__ void fetch(int64_t tile, int stage) {
    unsigned char* to = stages_ + stage * tiles_.stage;
    const uint32_t label_bytes = tiles_.rows * sizeof(int32_t);
    filled_[stage].arrive_and_expect(logits_bytes_ + (weight_a_row_ ? 2 : 1) * label_bytes);
    copy_to_shared(to, reinterpret_cast<const unsigned char*>(rows_.logits) + tile * logits_bytes_, logits_bytes_,
                   filled_[stage]);
    copy_to_shared(to + tiles_.labels, rows_.target.index + tile * tiles_.rows, label_bytes, filled_[stage]);
    if (weight_a_row_) {
      copy_to_shared(to + tiles_.weights, rows_.row_weight + tile * tiles_.rows, label_bytes, filled_[stage]);
    }
  }

  __device__ __forceinline__ void account(int64_t row, bool wanted, bool valid, float nll, float max, float log_sum) {
    const float loss = !wanted ? 0.0f : valid ? nll : NAN;
    if (rows_.loss) {
      rows_.store_results(row, loss, wanted ? max : 0.0f, wanted ? log_sum : 0.0f);
    } else {
      sum_ += loss;
    }
  }

  // Thread m · teams + r has segment m of row r, so that threads beside each other read from other banks (see
  // `segment_of`). The rows of a tile are a multiple of `teams`.
  __device__ __forceinline__ void work(int64_t first_row, unsigned char* stage) {
    const int teams = kWarp / tiles_.lanes;
    const bool leads = lane_ < teams;
    const int begin = leads ? 0 : lane_ / teams * tiles_.segment, units = classes_ / per_unit;
    const int end = min(begin + tiles_.segment, units);
    const int* labels = reinterpret_cast<const int*>(stage + tiles_.labels);
    const float* weights = reinterpret_cast<const float*>(stage + tiles_.weights);
    const float weight_of_all = weight_a_row_ ? 0.0f : rows_.row_weight[0];

    for (int r = lane_ & (teams - 1); r < tiles_.rows; r += teams) {
      Logit* x = reinterpret_cast<Logit*>(stage) + r * classes_;
      const float weight = weight_a_row_ ? weights[r] : weight_of_all;
      const bool wanted = !taken_out(weight);
      const int index = labels[r];
      const bool valid = wanted && index >= 0 && index < classes_;
      const float label_logit = valid ? number(x[index]) : 0.0f;
      RunningSoftmax<float> running;
      for_units(begin, end, [&](auto batch, const int* place) {
        float values[batch * per_unit];
#pragma unroll
        for (int k = 0; k < batch; k++) Unit<unit, Logit>::load(x + place[k] * per_unit, values + k * per_unit);
        running.add(values);
      });
      const SoftmaxSums<float> sums = teams == kWarp ? running.sums() : across_members(running.sums(), teams);
      if (leads) {
        const float log_sum = logarithm(sums.sum);
        const float nll = negative_log_likelihood(log_sum, label_logit - sums.max, rows_.ceiling);
        account(first_row + r, wanted, valid, nll, sums.max, log_sum);
      }
      if constexpr (kGradient) {
        const bool zero = !valid || weight == 0;
        const Exponentials<float> exponentials(sums.max);
        const float scale = __fdividef(weight, sums.sum);
        __syncwarp();  // the label's logit has been read
        for_units(begin, end, [&](auto batch, const int* place) {
          float values[batch * per_unit];
#pragma unroll
          for (int k = 0; k < batch; k++) Unit<unit, Logit>::load(x + place[k] * per_unit, values + k * per_unit);
#pragma unroll
          for (int j = 0; j < batch * per_unit; j++) {
            values[j] = zero ? 0.0f : exponentials.term(values[j]) * scale;
          }
#pragma unroll
          for (int k = 0; k < batch; k++) Unit<unit, Logit>::store(x + place[k] * per_unit, values + k * per_unit);
        });
        __syncwarp();
        if (leads && !zero) x[index] = stored<Logit>(exponentials.term(label_logit) * scale - weight);
      }
    }
  }

  // The same by one thread a row, which it holds: an exponential for each of its numbers is all.
  __device__ __forceinline__ void work_in_registers(int64_t first_row, unsigned char* stage) {
    const int units = classes_ / per_unit;
    const int* labels = reinterpret_cast<const int*>(stage + tiles_.labels);
    const float* weights = reinterpret_cast<const float*>(stage + tiles_.weights);
    const float weight_of_all = weight_a_row_ ? 0.0f : rows_.row_weight[0];
    const int start = unit == kVectorBytes ? (lane_ & 7) % units : 0;

    for (int r = lane_; r < tiles_.rows; r += kWarp) {
      Logit* row = reinterpret_cast<Logit*>(stage) + r * classes_;
      const float weight = weight_a_row_ ? weights[r] : weight_of_all;
      const int index = labels[r];
      const bool wanted = !taken_out(weight);
      const bool valid = wanted && static_cast<unsigned>(index) < static_cast<unsigned>(classes_);
      const float label_logit = valid ? number(row[index]) : 0.0f;
      float x[held * per_unit], max = no_logits<float>().max, sum = 0;
      for_held(units, start, [&](int k, int place) {
        Unit<unit, Logit>::load(row + place * per_unit, x + k * per_unit);
#pragma unroll
        for (int j = 0; j < per_unit; j++) max = Maximum()(max, x[k * per_unit + j]);
      });
      const Exponentials<float> exponentials(max);
      for_held(units, start, [&](int k, int) {
#pragma unroll
        for (int j = 0; j < per_unit; j++) {
          float& of_class = x[k * per_unit + j];
          of_class = exponentials.term(of_class);
          sum += of_class;
        }
      });
      const float log_sum = logarithm(sum);
      account(first_row + r, wanted, valid, negative_log_likelihood(log_sum, label_logit - max, rows_.ceiling), max,
              log_sum);
      if constexpr (kGradient) {
        const bool zero = !valid || weight == 0;
        const float scale = __fdividef(weight, sum);
        for_held(units, start, [&](int k, int place) {
          float of_unit[per_unit];
#pragma unroll
          for (int j = 0; j < per_unit; j++) of_unit[j] = zero ? 0.0f : x[k * per_unit + j] * scale;
          Unit<unit, Logit>::store(row + place * per_unit, of_unit);
        });
        if (!zero) row[index] = stored<Logit>(exponentials.term(label_logit) * scale - weight);
      }
    }
  }

  // body(k, place) for each unit of a row, k a constant.
  template <class Body>
  static __device__ __forceinline__ void for_held(int units, int start, Body body) {
#pragma unroll
    for (int k = 0; k < held; k++) {
      if (k >= units) break;
      const int place = start + k;
      body(k, unit == kVectorBytes && place >= units ? place - units : place);
    }
  }

  static __device__ __forceinline__ SoftmaxSums<float> across_members(SoftmaxSums<float> sums, int teams) {
    float max = sums.max;
    for (int mask = teams; mask < kWarp; mask *= 2) max = Maximum()(max, from_lane_xor(max, mask));
    float sum = sums.sum * Exponentials<float>(sums.max).as_terms_of(Exponentials<float>(max));
    for (int mask = teams; mask < kWarp; mask *= 2) sum += from_lane_xor(sum, mask);
    return {max, sum};
  }

  // Whole vectors are begun with at another one in each row, or rows of an even number of them would meet in a bank.
  template <class Body>
  __device__ __forceinline__ void for_units(int begin, int end, Body body) const {
    for_halving_batches<kBatch>(begin, end, [&](auto batch, int i) {
      int place[batch];
#pragma unroll
      for (int k = 0; k < batch; k++) {
        place[k] = i + k;
        if constexpr (unit == kVectorBytes) {
          place[k] += lane_ & 7;
          if (place[k] >= end) place[k] -= end - begin;
          if (place[k] >= end) place[k] = begin + (place[k] - begin) % (end - begin);
        }
      }
      body(batch, place);
    });
  }
};

#endif

// Warp w of all warps takes tiles w, w + warps, … of rows whose size is a multiple of `unit` bytes. Where the rows'
// losses are not wanted, part b of their sums is that of block b, and no part is left out.
template <bool kGradient, int unit, int held, class Logit>
__global__ void __launch_bounds__(kTileThreads, 4)
    cross_entropy_tiles(CrossEntropyRows<Logit, ClassIndices> rows, Tiles tiles, int64_t tile_count) {
#if __CUDA_ARCH__ >= 900
  constexpr int stages = kTileStages<kGradient>;
  extern __shared__ __align__(128) unsigned char all_stages[];
  __shared__ Barrier filled[kTileWarps][stages];
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == 0) {
    for (Barrier& barrier : filled[warp]) barrier.initialize(1);
    fence_barrier_initialization();
  }
  __syncwarp();
  TileWarp<kGradient, unit, held, Logit> worker(rows, tiles, all_stages + warp * stages * tiles.stage, filled[warp]);
  worker.run(blockIdx.x + static_cast<int64_t>(warp) * gridDim.x, tile_count,
             static_cast<int64_t>(gridDim.x) * kTileWarps);
  if (!rows.loss) {
    const double sum = across_block<kTileThreads>(worker.sum(), Sum());
    for (int64_t part = blockIdx.x + static_cast<int64_t>(threadIdx.x) * gridDim.x; part < rows.parts;
         part += static_cast<int64_t>(gridDim.x) * kTileThreads) {
      rows.sums[part] = part == blockIdx.x ? static_cast<float>(sum) : 0.0f;
    }
  }
#endif
}

}  // namespace jaxloss::gpu
