// Cross entropy of very short rows with labels, in tiles: what is made of a row is an objective's, with or without
// options.
//
// An objective has `rows`, the numbers of a row as the softmax is of them (`logit`, whose results `Number` can store,
// and `terms`, those of the numbers as they are in the row), and from the sums of a row its loss, what the softmax's
// terms are multiplied by to be derivatives, and that of the label.
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
  // Of longer rows of an odd number of 16-bit numbers a thread takes two at once; one is apart then, the first or the
  // last, which is the first thread's.
  static constexpr bool kHasEdge = held == 0 && unit == 2;
  static constexpr int taken = kHasEdge ? 4 : unit;
  using Taken = Unit<taken, Logit>;
  static constexpr int per_unit = Taken::count;
  // For so few numbers the correction takes more instructions than it saves (of sm_90a).
  static constexpr bool kFew = exactly && held * Unit<unit, Logit>::count <= 8;
  using Terms = std::conditional_t<kFew, Exponentials<float>, ExponentialsOf<typename Objective::Number>>;

 public:
  __device__ __forceinline__ TileWarp(const Objective& objective, const Tiles& tiles)
      : objective_(objective),
        tiles_(tiles),
        lane_(threadIdx.x % kWarp),
        classes_(exactly ? held * per_unit : static_cast<int>(objective.rows.classes)),
        weight_a_row_(objective.weight_a_row()),
        weight_of_all_(weight_a_row_ ? 0.0f : objective.weight_of_all()),
        weights_(weight_a_row_ ? tiles.weights : tiles.labels),
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
  float weight_of_all_;
  int weights_;  // bytes from a stage's beginning; what is there is no weight where all rows have the same
  TileTeam<taken> team_;
  int begin_ = 0, end_ = 0;  // of a row that this thread holds (the first is `begin_`)
  double sum_ = 0;

  // A tile's losses are added up as floats: a thread has a few of them.
  __device__ __forceinline__ void account(int64_t row, bool wanted, bool valid, float of_valid, float max,
                                          float log_sum, float& sum) {
    const float loss = !wanted ? 0.0f : valid ? of_valid : NAN;
    if (objective_.rows.loss) {
      objective_.store(row, loss, wanted ? max : 0.0f, wanted ? log_sum : 0.0f);
    } else {
      sum += loss;
    }
  }

  __device__ __forceinline__ void work(int64_t first_row, unsigned char* stage, float& sum) {
    const bool leads = team_.leads();
    const int* labels = reinterpret_cast<const int*>(stage + tiles_.labels);
    const float* weights = reinterpret_cast<const float*>(stage + weights_);
    for (int r = team_.row; r < tiles_.rows; r += team_.teams) {
      Logit* row = reinterpret_cast<Logit*>(stage) + r * classes_;
      Logit* x = row + (kHasEdge ? r % 2 : 0);
      const int edge = r % 2 ? 0 : classes_ - 1;
      const float weight = weight_of(weights[r]);
      const bool wanted = !is_masked(weight);
      const int index = labels[r];
      const bool valid = wanted && static_cast<unsigned>(index) < static_cast<unsigned>(classes_);
      const float stored_label = valid ? number(row[index]) : -INFINITY;
      leave_out_label(row, index, valid && leads);
      const float edge_logit = kHasEdge && leads ? number(row[edge]) : -INFINITY;
      const float others_max = fmaxf(team_.across(fmaxf(largest(x), edge_logit), Maximum()), no_logits<float>().max);
      const float label_logit = valid ? objective_.logit(stored_label) : 0.0f;
      const auto other_terms = objective_.terms(others_max);
      float parts[4] = {kHasEdge ? other_terms.term(edge_logit) : 0.0f};
      for_units([&](auto batch, const int* place) {
        float values[batch * per_unit];
#pragma unroll
        for (int k = 0; k < batch; k++) Taken::load(x + place[k] * per_unit, values + k * per_unit);
#pragma unroll
        for (int j = 0; j < batch * per_unit; j++) parts[j % 4] += other_terms.term(values[j]);
      });
      const float sum_of_other_terms = team_.across((parts[0] + parts[1]) + (parts[2] + parts[3]), Sum());
      const float highest = fmaxf(objective_.logit(others_max), no_logits<float>().max);
      const LabelledSums<float> sums({highest, other_terms.corrected(sum_of_other_terms)}, valid, label_logit);
      const auto of_row = objective_.row(sums, label_logit, index, valid);
      if (leads) account(first_row + r, wanted, valid, of_row.loss(), sums.max, sums.log_sum, sum);
      if (kGradient && objective_.has_gradient()) {
        const bool zero = !valid || weight == 0;
        const auto terms = objective_.terms(fmaxf(others_max, stored_label));
        const float scale = terms.corrected(of_row.scale(weight));
        for_units([&](auto batch, const int* place) {
          float values[batch * per_unit];
#pragma unroll
          for (int k = 0; k < batch; k++) Taken::load(x + place[k] * per_unit, values + k * per_unit);
#pragma unroll
          for (int j = 0; j < batch * per_unit; j++) values[j] = zero ? 0.0f : terms.term(values[j]) * scale;
#pragma unroll
          for (int k = 0; k < batch; k++) Taken::store(x + place[k] * per_unit, values + k * per_unit);
        });
        if (kHasEdge && leads) row[edge] = stored<Logit>(zero ? 0.0f : terms.term(edge_logit) * scale);
        __syncwarp();
        if (leads && !zero) row[index] = stored<Logit>(of_row.label_derivative(weight));
      }
    }
  }

  // Of this thread's units; NaNs are passed over.
  __device__ __forceinline__ float largest(const Logit* x) const {
    constexpr int words = taken / 4;
    const uint32_t none = minus_infinities<Logit>().vector[0].x;
    uint32_t most[2] = {none, none};  // two, for each waits for its last comparison
    for_units([&](auto batch, const int* place) {
#pragma unroll
      for (int k = 0; k < batch; k++) {
        uint32_t word[words];
        Taken::load(x + place[k] * per_unit, word);
#pragma unroll
        for (int w = 0; w < words; w++) {
          uint32_t& half = most[(k * words + w) % 2];
          half = larger_of(half, word[w], Logit());
        }
      }
    });
    const uint32_t both = larger_of(most[0], most[1], Logit());
    Logit numbers[4 / sizeof(Logit)];
    memcpy(numbers, &both, 4);
    return sizeof(Logit) == 4 ? number(numbers[0]) : fmaxf(number(numbers[0]), number(numbers[4 / sizeof(Logit) - 1]));
  }

  // Some 8 numbers at once.
  template <class Body>
  __device__ __forceinline__ void for_units(Body body) const {
    team_.template for_units<(taken == kVectorBytes ? 2 : 8 / per_unit)>(body);
  }

  // The label's place in its row, once every thread of the row has read it.
  __device__ __forceinline__ void leave_out_label(Logit* row, int index, bool writes) const {
    constexpr float none = -INFINITY;
    team_.wait();
    if (writes) row[index] = stored<Logit>(none);
    team_.wait();
  }

  // A row's weight, from what is staged as such.
  __device__ __forceinline__ float weight_of(float staged) const { return weight_a_row_ ? staged : weight_of_all_; }

  // The same by one thread a row, which it holds: an exponential for each of its numbers is all.
  __device__ __forceinline__ void work_in_registers(int64_t first_row, unsigned char* stage, float& sum) {
    Place at = {reinterpret_cast<Logit*>(stage) + lane_ * classes_,
                reinterpret_cast<const int*>(stage + tiles_.labels) + lane_,
                reinterpret_cast<const float*>(stage + weights_) + lane_, first_row + lane_};
    int left = tiles_.rows;
    for (; left >= kRowsAtOnce * kWarp; left -= kRowsAtOnce * kWarp) {
      work_in_registers<kRowsAtOnce>(at, sum);
      at.move(kRowsAtOnce * kWarp, classes_);
    }
    if (kRowsAtOnce > 1 && left > 0) work_in_registers<1>(at, sum);
  }

  // A row in a tile.
  struct Place {
    Logit* row;
    const int* label;
    const float* weight;
    int64_t number;

    __device__ __forceinline__ void move(int rows, int classes) {
      row += rows * classes, label += rows, weight += rows, number += rows;
    }
  };

  // That row and those that many lanes further on.
  template <int rows>
  __device__ __forceinline__ void work_in_registers(const Place& at, float& tile_sum) {
    HeldRow held_row[rows];
#pragma unroll
    for (int a = 0; a < rows; a++) {
      held_row[a].weight = weight_of(at.weight[a * kWarp]);
      hold(held_row[a], at.row + a * kWarp * classes_, at.label[a * kWarp]);
    }
#pragma unroll
    for (int a = 0; a < rows; a++) sum_up(held_row[a]);
#pragma unroll
    for (int a = 0; a < rows; a++) {
      const HeldRow& of = held_row[a];
      const LabelledSums<float>& sums = of.results.sums;
      account(at.number + a * kWarp, of.wanted, of.valid, of.loss, sums.max, sums.log_sum, tile_sum);
      if (kGradient && objective_.has_gradient()) store_gradient(of, at.row + a * kWarp * classes_);
    }
  }

  // What a thread holds of a row, and what it makes of that.
  struct HeldRow {
    float x[held > 0 ? held * per_unit : 1];  // the logits, then their terms
    float weight, label_logit, highest;
    int index;
    bool wanted, valid;
    typename Objective::Row results;
    float loss;
  };

  __device__ __forceinline__ void hold(HeldRow& of, Logit* row, int index) const {
    of.index = index;
    of.wanted = !is_masked(of.weight);
    of.valid = of.wanted && static_cast<unsigned>(index) < static_cast<unsigned>(classes_);
    of.label_logit = 0;
    if (!kLabelInRegisters && of.valid) {
      of.label_logit = objective_.logit(number(row[index]));
      row[index] = stored<Logit>(-INFINITY);
    }
    of.highest = no_logits<float>().max;
    for_held([&](int k, int place) {
      load(row + place * per_unit, of.x + k * per_unit);
#pragma unroll
      for (int j = 0; j < per_unit; j++) {
        float& of_class = of.x[k * per_unit + j];
        if constexpr (kLabelInRegisters) {
          of.label_logit = if_equal(index, k * per_unit + j, of_class, of.label_logit);
          of_class = if_equal(index, k * per_unit + j, -INFINITY, of_class);
        }
        of.highest = Maximum()(of.highest, of_class);
      }
    });
    if (of.valid) of.highest = Maximum()(of.highest, of.label_logit);
  }

  __device__ __forceinline__ void sum_up(HeldRow& of) const {
    const Terms exponentials(of.highest);
    float sum = 0;
    for_held([&](int k, int) {
#pragma unroll
      for (int j = 0; j < per_unit; j++) {
        float& of_class = of.x[k * per_unit + j];
        of_class = exponentials.term(of_class);
        sum += of_class;
      }
    });
    const LabelledSums<float> sums({of.highest, exponentials.corrected(sum)}, of.valid, of.label_logit);
    of.results = objective_.row(sums, of.label_logit, of.index, of.valid);
    of.loss = of.results.loss();
  }

  __device__ __forceinline__ void store_gradient(const HeldRow& of, Logit* row) const {
    const bool zero = !of.valid || of.weight == 0;
    const float scale = Terms(of.highest).corrected(of.results.scale(of.weight));
    const float of_label = of.results.label_derivative(of.weight);
    for_held([&](int k, int place) {
      float of_unit[per_unit];
#pragma unroll
      for (int j = 0; j < per_unit; j++) {
        float derivative = of.x[k * per_unit + j] * scale;
        if constexpr (kLabelInRegisters) {
          derivative = if_equal(of.index, k * per_unit + j, of_label, derivative);
        }
        of_unit[j] = zero ? 0.0f : derivative;
      }
      Unit<unit, Logit>::store(row + place * per_unit, of_unit);
    });
    if (!kLabelInRegisters && !zero) row[of.index] = stored<Logit>(of_label);
  }

  __device__ __forceinline__ void load(const Logit* from, float* x) const {
    Unit<unit, Logit>::load(from, x);
#pragma unroll
    for (int j = 0; j < per_unit; j++) x[j] = objective_.logit(x[j]);
  }

  // Of so few numbers, in the order of their classes, that to compare an index with each takes less than to fetch one.
  static constexpr bool kLabelInRegisters = exactly && held * per_unit <= 4;
  // So that what waits in one row is no wait of the other's.
  static constexpr int kRowsAtOnce = kLabelInRegisters ? 2 : 1;

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
};

// Works on rows whose size is a multiple of `unit` bytes. Where the rows' losses are not wanted, part b of their sums
// is that of block b, and no part is left out.
template <bool kGradient, int unit, int held, bool exactly, class Objective>
__device__ __forceinline__ void work_on_tiles(const Objective& objective, const Tiles& tiles, int64_t tile_count) {
  const auto& rows = objective.rows;
  TileWarp<Objective, kGradient, unit, held, exactly> worker(objective, tiles);
  const float* weights = objective.weight_a_row() ? objective.weights() : nullptr;
  for_tiles(tiled_arrays(rows, weights, kGradient ? rows.gradient : nullptr, tiles), tiles, tile_count, worker);
  if (!rows.loss) write_sums(worker.sum(), rows.sums, rows.parts);
}

}  // namespace jaxloss::gpu
