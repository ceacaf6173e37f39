// Cross entropy of very short rows with labels, in tiles: what is made of a row is an objective's, with or without
// options.
//
// An objective has `rows`, the numbers of a row as the softmax is of them (`logit`), and from the sums of a row its
// loss, what the softmax's terms are multiplied by to be derivatives, and that of the label.
#pragma once

#include "gpu/core/softmax.cuh"
#include "gpu/rows/tiles.cuh"
#include "rows.h"

namespace jaxloss::gpu {

// Blocks on a multiprocessor, at least: threads that copy have what they copy in registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kTileBlocks = 3;
#else
constexpr int kTileBlocks = 4;
#endif

// What one warp does. A row's logits are read once (those of a masked row too, to no effect), its gradient is
// written once. A thread holds a row of up to `held` units in its registers, of just so many if `exactly`; 0: rows are
// longer.
template <class Objective, bool kGradient, int unit, int held, bool exactly>
class TileWarp {
  using Logit = typename Objective::Logit;

 public:
  __device__ __forceinline__ TileWarp(const Objective& objective, const Tiles& tiles)
      : objective_(objective),
        tiles_(tiles),
        lane_(threadIdx.x % kWarp),
        classes_(exactly ? held * per_unit : static_cast<int>(objective.rows.classes)),
        weight_a_row_(objective.weight_a_row()),
        team_(tiles, classes_ / per_unit) {
    if constexpr (held > 0) {
      const int units = classes_ / per_unit;
      begin_ = unit == kVectorBytes ? (lane_ & 7) % units : 0;
      end_ = units;
    }
  }

  __device__ __forceinline__ void operator()(int64_t first_row, unsigned char* stage) {
    float sum = 0;
    if constexpr (held > 0) {
      work_in_registers(first_row, stage, sum);
    } else {
      work(first_row, stage, sum);
    }
    sum_ += sum;
  }

  // Of the losses of this thread's rows, where they are not wanted one by one.
  __device__ __forceinline__ double sum() const { return sum_; }

 private:
  const Objective& objective_;
  const Tiles& tiles_;
  int lane_, classes_;
  bool weight_a_row_;
  TileTeam<unit> team_;
  int begin_ = 0, end_ = 0;  // of a row that this thread holds (the first is `begin_`)
  double sum_ = 0;
  static constexpr int per_unit = Unit<unit, Logit>::count;

  // A tile's losses are added up as floats: a thread has a few of them.
  __device__ __forceinline__ void account(int64_t row, bool wanted, bool valid, float of_valid,
                                          const LabelledSums<float>& sums, float& sum) {
    const float loss = !wanted ? 0.0f : valid ? of_valid : NAN;
    if (objective_.rows.loss) {
      objective_.store(row, loss, wanted ? sums.max : 0.0f, wanted ? sums.log_sum : 0.0f);
    } else {
      sum += loss;
    }
  }

  __device__ __forceinline__ void work(int64_t first_row, unsigned char* stage, float& sum) {
    const bool leads = team_.leads();
    const int* labels = reinterpret_cast<const int*>(stage + tiles_.labels);
    const float* weights = reinterpret_cast<const float*>(stage + tiles_.weights);
    const float weight_of_all = weight_a_row_ ? 0.0f : objective_.weight_of_all();

    for (int r = team_.row; r < tiles_.rows; r += team_.teams) {
      Logit* x = reinterpret_cast<Logit*>(stage) + r * classes_;
      const float weight = weight_a_row_ ? weights[r] : weight_of_all;
      const bool wanted = !is_masked(weight);
      const int index = labels[r];
      const bool valid = wanted && static_cast<unsigned>(index) < static_cast<unsigned>(classes_);
      const float label_logit = valid ? objective_.logit(number(x[index])) : 0.0f;
      leave_out_label(x, index, valid && leads);
      RunningSoftmax<float> running;
      team_.for_units([&](auto batch, const int* place) {
        float values[batch * per_unit];
#pragma unroll
        for (int k = 0; k < batch; k++) load(x + place[k] * per_unit, values + k * per_unit);
        running.add(values);
      });
      const SoftmaxSums<float> others = team_.teams == kWarp ? running.sums() : across_members(running.sums());
      const LabelledSums<float> sums(others, valid, label_logit);
      const auto of_row = objective_.row(sums, label_logit, index, valid);
      if (leads) account(first_row + r, wanted, valid, of_row.loss(), sums, sum);
      if (kGradient && objective_.has_gradient()) {
        const bool zero = !valid || weight == 0;
        const Exponentials<float> exponentials(sums.max);
        const float scale = of_row.scale(weight);
        team_.for_units([&](auto batch, const int* place) {
          float values[batch * per_unit];
#pragma unroll
          for (int k = 0; k < batch; k++) load(x + place[k] * per_unit, values + k * per_unit);
#pragma unroll
          for (int j = 0; j < batch * per_unit; j++) {
            values[j] = zero ? 0.0f : exponentials.term(values[j]) * scale;
          }
#pragma unroll
          for (int k = 0; k < batch; k++) Unit<unit, Logit>::store(x + place[k] * per_unit, values + k * per_unit);
        });
        __syncwarp();
        if (leads && !zero) x[index] = stored<Logit>(of_row.label_derivative(weight));
      }
    }
  }

  // The label's place in its row, once every thread of the row has read it.
  __device__ __forceinline__ void leave_out_label(Logit* row, int index, bool writes) const {
    constexpr float none = -INFINITY;
    team_.wait();
    if (writes) row[index] = stored<Logit>(none);
    team_.wait();
  }

  // The same by one thread a row, which it holds: an exponential for each of its numbers is all.
  __device__ __forceinline__ void work_in_registers(int64_t first_row, unsigned char* stage, float& tile_sum) {
    const int* labels = reinterpret_cast<const int*>(stage + tiles_.labels);
    const float* weights = reinterpret_cast<const float*>(stage + tiles_.weights);
    const float weight_of_all = weight_a_row_ ? 0.0f : objective_.weight_of_all();

    for (int r = lane_; r < tiles_.rows; r += kWarp) {
      Logit* row = reinterpret_cast<Logit*>(stage) + r * classes_;
      const float weight = weight_a_row_ ? weights[r] : weight_of_all;
      const int index = labels[r];
      const bool wanted = !is_masked(weight);
      const bool valid = wanted && static_cast<unsigned>(index) < static_cast<unsigned>(classes_);
      float label_logit = 0;
      if (!kLabelInRegisters && valid) {
        label_logit = objective_.logit(number(row[index]));
        row[index] = stored<Logit>(-INFINITY);
      }
      float x[held * per_unit], max = no_logits<float>().max, sum = 0;
      for_held([&](int k, int place) {
        load(row + place * per_unit, x + k * per_unit);
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
      const auto of_row = objective_.row(sums, label_logit, index, valid);
      account(first_row + r, wanted, valid, of_row.loss(), sums, tile_sum);
      if (kGradient && objective_.has_gradient()) {
        const bool zero = !valid || weight == 0;
        const float scale = of_row.scale(weight), of_label = of_row.label_derivative(weight);
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

  __device__ __forceinline__ void load(const Logit* from, float* x) const {
    Unit<unit, Logit>::load(from, x);
#pragma unroll
    for (int j = 0; j < per_unit; j++) x[j] = objective_.logit(x[j]);
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
    const float max = team_.across(sums.max, Maximum());
    return {max, team_.across(sums.sum * Exponentials<float>(sums.max).as_terms_of(Exponentials<float>(max)), Sum())};
  }
};

// Warp w of all warps takes tiles w, w + warps, … of rows whose size is a multiple of `unit` bytes. Where the rows'
// losses are not wanted, part b of their sums is that of block b, and no part is left out.
template <bool kGradient, int unit, int held, bool exactly, class Objective>
__device__ __forceinline__ void work_on_tiles(const Objective& objective, const Tiles& tiles, int64_t tile_count) {
  extern __shared__ __align__(128) unsigned char all_stages[];
  __shared__ Barrier filled[kTileWarps][kMostTileStages];
  const auto& rows = objective.rows;
  const int warp = threadIdx.x / kWarp;
  const TiledArrays arrays = {rows.logits, rows.target.index, objective.weight_a_row() ? objective.weights() : nullptr,
                              kGradient ? rows.gradient : nullptr,
                              tiles.rows * static_cast<uint32_t>(rows.classes * sizeof(*rows.logits))};
  TileStages stages(arrays, tiles, all_stages + warp * tiles.stages * tiles.stage, filled[warp]);
  TileWarp<Objective, kGradient, unit, held, exactly> worker(objective, tiles);
  stages.run(blockIdx.x + static_cast<int64_t>(warp) * gridDim.x, tile_count,
             static_cast<int64_t>(gridDim.x) * kTileWarps,
             [&](int64_t first_row, unsigned char* stage) { worker(first_row, stage); });
  if (!rows.loss) write_sums(worker.sum(), rows.sums, rows.parts);
}

}  // namespace jaxloss::gpu
