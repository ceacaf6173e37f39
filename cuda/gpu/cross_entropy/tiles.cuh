// Cross entropy of very short rows: every warp moves tiles of many rows through shared memory.
//
// On Hopper and later the copy engine brings a tile in and takes its gradient, formed in its place, out. A warp has a
// stage for the tile that it works on, one for the next one, which comes in, and one for a gradient that goes out; it
// shares nothing with other warps. Before Hopper its threads copy, and it has one stage. A thread or a few take a row,
// whose numbers are read in units as large as rows of that width are aligned.
#pragma once

#include "gpu/core/async.cuh"
#include "gpu/core/softmax.cuh"
#include "gpu/core/vector.cuh"
#include "rows.h"

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

// Blocks on a multiprocessor, at least: threads that copy have what they copy in registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kTileBlocks = 3;
struct Barrier {};  // no thread waits at one
#else
constexpr int kTileBlocks = 4;
#endif

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

// What one warp does. A row's logits are read once (those of a masked row too, to no effect), its gradient is
// written once. A thread holds a row of up to `held` units in its registers, of just so many if `exactly`; 0: rows are
// longer.
template <bool kGradient, int unit, int held, bool exactly, class Logit>
class TileWarp {
 public:
  __device__ __forceinline__ TileWarp(const CrossEntropyRows<Logit, ClassIndices>& rows, const Tiles& tiles,
                                      unsigned char* stages, Barrier* filled)
      : rows_(rows),
        tiles_(tiles),
        stages_(stages),
        filled_(filled),
        lane_(threadIdx.x % kWarp),
        classes_(exactly ? held * per_unit : static_cast<int>(rows.classes)),
        weight_a_row_(rows.rows_per_weight == 1),
        logits_bytes_(tiles.rows * static_cast<uint32_t>(rows.classes * sizeof(Logit))) {
    const int units = classes_ / per_unit;
    if constexpr (held > 0) {
      teams_ = kWarp;
      begin_ = unit == kVectorBytes ? (lane_ & 7) % units : 0;
      end_ = units;
    } else {
      teams_ = kWarp >> (__ffs(tiles.lanes) - 1);
      begin_ = (lane_ >> (__ffs(teams_) - 1)) * tiles.segment;
      end_ = min(begin_ + tiles.segment, units);
    }
  }

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  // Tiles first, first + stride, … in stages that the copy engine fills and empties.
  __device__ __forceinline__ void run_fed(int64_t first, int64_t tile_count, int64_t stride) {
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
      work_on(tile, stage);
      fence_before_copy();
      __syncwarp();
      if (lane_ == 0) {
        if constexpr (kGradient) {
          copy_to_global(gradient_of(tile), stages_ + stage * tiles_.stage, logits_bytes_);
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
#endif

  // The same in one stage, which the warp fills and empties.
  __device__ __forceinline__ void run_alone(int64_t first, int64_t tile_count, int64_t stride) {
    const uint32_t label_bytes = tiles_.rows * sizeof(int32_t);
    for (int64_t tile = first; tile < tile_count; tile += stride) {
      copy(stages_, logits_of(tile), logits_bytes_);
      copy(stages_ + tiles_.labels, rows_.target.index + tile * tiles_.rows, label_bytes);
      if (weight_a_row_) copy(stages_ + tiles_.weights, rows_.row_weight + tile * tiles_.rows, label_bytes);
      __syncwarp();
      work_on(tile, 0);
      __syncwarp();
      if constexpr (kGradient) {
        copy(gradient_of(tile), stages_, logits_bytes_);
        __syncwarp();
      }
    }
  }

  // Of the losses of this thread's rows, where they are not wanted one by one.
  __device__ __forceinline__ double sum() const { return sum_; }

 private:
  const CrossEntropyRows<Logit, ClassIndices>& rows_;
  const Tiles& tiles_;
  unsigned char* stages_;
  Barrier* filled_;
  int lane_, classes_;
  bool weight_a_row_;
  uint32_t logits_bytes_;
  int teams_, begin_, end_;  // threads that begin a row each; this one's units of a row (the first is `begin_`)
  double sum_ = 0;
  static constexpr int per_unit = Unit<unit, Logit>::count;
  static constexpr int kBatch = unit == 16 ? 2 : unit == 8 ? 4 : 8;

  __device__ __forceinline__ const unsigned char* logits_of(int64_t tile) const {
    return reinterpret_cast<const unsigned char*>(rows_.logits) + tile * logits_bytes_;
  }
  __device__ __forceinline__ unsigned char* gradient_of(int64_t tile) const {
    return reinterpret_cast<unsigned char*>(rows_.gradient) + tile * logits_bytes_;
  }

  __device__ __forceinline__ void work_on(int64_t tile, int stage) {
    float sum = 0;
    if constexpr (held > 0) {
      work_in_registers(tile * tiles_.rows, stages_ + stage * tiles_.stage, sum);
    } else {
      work(tile * tiles_.rows, stages_ + stage * tiles_.stage, sum);
    }
    sum_ += sum;
  }

  // By all lanes; sizes and addresses are multiples of a vector's.
  __device__ __forceinline__ void copy(void* to, const void* from, uint32_t bytes) const {
    const uint4* vectors = static_cast<const uint4*>(from);
#pragma unroll 4
    for (uint32_t i = lane_; i < bytes / kVectorBytes; i += kWarp) static_cast<uint4*>(to)[i] = vectors[i];
  }

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __device__ __forceinline__ void fetch(int64_t tile, int stage) {
    unsigned char* to = stages_ + stage * tiles_.stage;
    const uint32_t label_bytes = tiles_.rows * sizeof(int32_t);
    filled_[stage].arrive_and_expect(logits_bytes_ + (weight_a_row_ ? 2 : 1) * label_bytes);
    copy_to_shared(to, logits_of(tile), logits_bytes_, filled_[stage]);
    copy_to_shared(to + tiles_.labels, rows_.target.index + tile * tiles_.rows, label_bytes, filled_[stage]);
    if (weight_a_row_) {
      copy_to_shared(to + tiles_.weights, rows_.row_weight + tile * tiles_.rows, label_bytes, filled_[stage]);
    }
  }
#endif

  // A tile's losses are added up as floats: a thread has a few of them.
  __device__ __forceinline__ void account(int64_t row, bool wanted, bool valid, float nll, float max, float log_sum,
                                          float& sum) {
    const float loss = !wanted ? 0.0f : valid ? nll : NAN;
    if (rows_.loss) {
      rows_.store_results(row, loss, wanted ? max : 0.0f, wanted ? log_sum : 0.0f);
    } else {
      sum += loss;
    }
  }

  // Thread m · teams + r has segment m of row r, so that threads beside each other read from other banks (see
  // `segment_of`). The rows of a tile are a multiple of `teams`.
  __device__ __forceinline__ void work(int64_t first_row, unsigned char* stage, float& sum) {
    const bool leads = lane_ < teams_;
    const int* labels = reinterpret_cast<const int*>(stage + tiles_.labels);
    const float* weights = reinterpret_cast<const float*>(stage + tiles_.weights);
    const float weight_of_all = weight_a_row_ ? 0.0f : rows_.row_weight[0];

    for (int r = lane_ & (teams_ - 1); r < tiles_.rows; r += teams_) {
      Logit* x = reinterpret_cast<Logit*>(stage) + r * classes_;
      const float weight = weight_a_row_ ? weights[r] : weight_of_all;
      const bool wanted = !is_masked(weight);
      const int index = labels[r];
      const bool valid = wanted && static_cast<unsigned>(index) < static_cast<unsigned>(classes_);
      const float label_logit = valid ? number(x[index]) : 0.0f;
      leave_out_label(x, index, valid && leads);
      RunningSoftmax<float> running;
      for_units([&](auto batch, const int* place) {
        float values[batch * per_unit];
#pragma unroll
        for (int k = 0; k < batch; k++) Unit<unit, Logit>::load(x + place[k] * per_unit, values + k * per_unit);
        running.add(values);
      });
      const SoftmaxSums<float> others = teams_ == kWarp ? running.sums() : across_members(running.sums());
      const LabelledSums<float> sums(others, valid, label_logit);
      if (leads) {
        const float nll = negative_log_likelihood(sums.log_sum, label_logit - sums.max, rows_.ceiling);
        account(first_row + r, wanted, valid, nll, sums.max, sums.log_sum, sum);
      }
      if constexpr (kGradient) {
        const bool zero = !valid || weight == 0;
        const Exponentials<float> exponentials(sums.max);
        const float scale = __fdividef(weight, sums.sum);
        for_units([&](auto batch, const int* place) {
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
        if (leads && !zero) x[index] = stored<Logit>(sums.label_derivative(label_logit) * weight);
      }
    }
  }

  // The label's place in its row, once every thread of the row has read it.
  __device__ __forceinline__ void leave_out_label(Logit* row, int index, bool writes) const {
    constexpr float none = -INFINITY;
    if (teams_ < kWarp) __syncwarp();
    if (writes) row[index] = stored<Logit>(none);
    if (teams_ < kWarp) __syncwarp();
  }

  // The same by one thread a row, which it holds: an exponential for each of its numbers is all.
  __device__ __forceinline__ void work_in_registers(int64_t first_row, unsigned char* stage, float& tile_sum) {
    const int* labels = reinterpret_cast<const int*>(stage + tiles_.labels);
    const float* weights = reinterpret_cast<const float*>(stage + tiles_.weights);
    const float weight_of_all = weight_a_row_ ? 0.0f : rows_.row_weight[0];

    for (int r = lane_; r < tiles_.rows; r += kWarp) {
      Logit* row = reinterpret_cast<Logit*>(stage) + r * classes_;
      const float weight = weight_a_row_ ? weights[r] : weight_of_all;
      const int index = labels[r];
      const bool wanted = !is_masked(weight);
      const bool valid = wanted && static_cast<unsigned>(index) < static_cast<unsigned>(classes_);
      float label_logit = 0;
      if (!kLabelInRegisters && valid) {
        label_logit = number(row[index]);
        row[index] = stored<Logit>(-INFINITY);
      }
      float x[held * per_unit], max = no_logits<float>().max, sum = 0;
      for_held([&](int k, int place) {
        Unit<unit, Logit>::load(row + place * per_unit, x + k * per_unit);
#pragma unroll
        for (int j = 0; j < per_unit; j++) {
          float& of_class = x[k * per_unit + j];
          if constexpr (kLabelInRegisters) {
            label_logit = if_equal(index, k * per_unit + j, of_class, label_logit);
            of_class = if_equal(index, k * per_unit + j, -INFINITY, of_class);
          }
          max = Maximum()(max, of_class);
        }
      });
      if (valid) max = Maximum()(max, label_logit);
      const Exponentials<float> exponentials(max);
      for_held([&](int k, int) {
#pragma unroll
        for (int j = 0; j < per_unit; j++) {
          float& of_class = x[k * per_unit + j];
          of_class = exponentials.term(of_class);
          sum += of_class;
        }
      });
      const LabelledSums<float> sums({max, sum}, valid, label_logit);
      account(first_row + r, wanted, valid, negative_log_likelihood(sums.log_sum, label_logit - max, rows_.ceiling),
              max, sums.log_sum, tile_sum);
      if constexpr (kGradient) {
        const bool zero = !valid || weight == 0;
        const float scale = __fdividef(weight, sums.sum), of_label = sums.label_derivative(label_logit) * weight;
        for_held([&](int k, int place) {
          float of_unit[per_unit];
#pragma unroll
          for (int j = 0; j < per_unit; j++) {
            float derivative = x[k * per_unit + j] * scale;
            if constexpr (kLabelInRegisters) derivative = if_equal(index, k * per_unit + j, of_label, derivative);
            of_unit[j] = zero ? 0.0f : derivative;
          }
          Unit<unit, Logit>::store(row + place * per_unit, of_unit);
        });
        if (!kLabelInRegisters && !zero) row[index] = stored<Logit>(of_label);
      }
    }
  }

  // Of so few numbers, in the order of their classes, that to compare an index with each takes less than to fetch one.
  static constexpr bool kLabelInRegisters = exactly && held * per_unit <= 4;

  // body(k, place) for each unit of a row, k a constant.
  template <class Body>
  __device__ __forceinline__ void for_held(Body body) const {
#pragma unroll
    for (int k = 0; k < held; k++) {
      if (!exactly && k >= end_) break;
      const int place = held == 1 ? 0 : begin_ + k;
      body(k, held > 1 && unit == kVectorBytes && place >= end_ ? place - end_ : place);
    }
  }

  __device__ __forceinline__ SoftmaxSums<float> across_members(SoftmaxSums<float> sums) const {
    float max = sums.max;
    for (int mask = teams_; mask < kWarp; mask *= 2) max = Maximum()(max, from_lane_xor(max, mask));
    float sum = sums.sum * Exponentials<float>(sums.max).as_terms_of(Exponentials<float>(max));
    for (int mask = teams_; mask < kWarp; mask *= 2) sum += from_lane_xor(sum, mask);
    return {max, sum};
  }

  // Whole vectors are begun with at another one in each row, or rows of an even number of them would meet in a bank.
  template <class Body>
  __device__ __forceinline__ void for_units(Body body) const {
    for_halving_batches<kBatch>(begin_, end_, 1, [&](auto batch, int i) {
      int place[batch];
#pragma unroll
      for (int k = 0; k < batch; k++) {
        place[k] = i + k;
        if constexpr (unit == kVectorBytes) {
          place[k] += lane_ & 7;
          if (place[k] >= end_) place[k] -= end_ - begin_;
          if (place[k] >= end_) place[k] = begin_ + (place[k] - begin_) % (end_ - begin_);
        }
      }
      body(batch, place);
    });
  }
};

// Warp w of all warps takes tiles w, w + warps, … of rows whose size is a multiple of `unit` bytes. Where the rows'
// losses are not wanted, part b of their sums is that of block b, and no part is left out.
template <bool kGradient, int unit, int held, bool exactly, class Logit>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    cross_entropy_tiles(CrossEntropyRows<Logit, ClassIndices> rows, Tiles tiles, int64_t tile_count) {
  extern __shared__ __align__(128) unsigned char all_stages[];
  __shared__ Barrier filled[kTileWarps][kMostTileStages];
  const int warp = threadIdx.x / kWarp;
  TileWarp<kGradient, unit, held, exactly, Logit> worker(rows, tiles, all_stages + warp * tiles.stages * tiles.stage,
                                                         filled[warp]);
  const int64_t first = blockIdx.x + static_cast<int64_t>(warp) * gridDim.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kTileWarps;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (threadIdx.x % kWarp == 0) {
    for (Barrier& barrier : filled[warp]) barrier.initialize(1);
    fence_barrier_initialization();
  }
  __syncwarp();
  worker.run_fed(first, tile_count, stride);
#else
  worker.run_alone(first, tile_count, stride);
#endif
  if (!rows.loss) {
    const double sum = across_block<kTileThreads>(worker.sum(), Sum());
    for (int64_t part = blockIdx.x + static_cast<int64_t>(threadIdx.x) * gridDim.x; part < rows.parts;
         part += static_cast<int64_t>(gridDim.x) * kTileThreads) {
      rows.sums[part] = part == blockIdx.x ? static_cast<float>(sum) : 0.0f;
    }
  }
}

}  // namespace jaxloss::gpu
