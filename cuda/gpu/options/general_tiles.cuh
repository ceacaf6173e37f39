// Cross entropy of very short rows with labels, in tiles, with any options but a softcap, and without statistics.
#pragma once

#include "gpu/options/row.cuh"
#include "gpu/rows/tiles.cuh"

namespace jaxloss::gpu {

// What one warp does with a tile of rows in shared memory: a thread or a few take a row, which they go along twice
// where a gradient or the losses of all its classes are wanted, a number at a time.
template <class Logit>
class OptionTile {
  using Kind = OptionKind<false, true, false, true>;

 public:
  __device__ __forceinline__ OptionTile(const CrossEntropyOptionRows<Logit, ClassIndices>& rows, const Tiles& tiles)
      : rows_(rows),
        tiles_(tiles),
        stages_weights_(rows.row_weight.one_per_row()),
        weight_of_all_(rows.weight_of(0)),
        classes_(static_cast<int>(rows.classes)),
        team_(tiles, classes_),
        objective_(rows, 0) {}

  __device__ __forceinline__ void operator()(int64_t first_row, unsigned char* stage) {
    const int* labels = reinterpret_cast<const int*>(stage + tiles_.labels);
    const float* weights = reinterpret_cast<const float*>(stage + tiles_.weights);
    float sum = 0;
    for (int r = team_.row; r < tiles_.rows; r += team_.teams) {
      objective_.take_labels(rows_, first_row + r, labels[r]);
      const float weight = stages_weights_ ? weights[r] : weight_of_all_;
      const float loss = loss_of_row(first_row + r, reinterpret_cast<Logit*>(stage) + r * classes_, weight);
      if (team_.leads()) sum += loss;
    }
    sum_ += sum;
  }

  // Of the losses of this thread's rows.
  __device__ __forceinline__ double sum() const { return sum_; }

 private:
  const CrossEntropyOptionRows<Logit, ClassIndices>& rows_;
  const Tiles& tiles_;
  bool stages_weights_;
  float weight_of_all_;
  int classes_;
  TileTeam<sizeof(Logit), true> team_;
  RowObjective<float> objective_;  // of all rows, but for their labels
  double sum_ = 0;

  // Reads and writes `x`, a row in shared memory, where its gradient is left, and writes the other results.
  __device__ __forceinline__ float loss_of_row(int64_t row, Logit* x, float weight) const {
    const bool wanted = !is_masked(weight);
    const MergedScores merge{objective_.inverse_temperature * 1.44269504f};
    const Smoothing<Kind> smoothing(objective_);
    const RowLabels<Kind> labels(objective_, x, wanted);
    team_.wait();
    if (team_.leads() && labels.has_first) x[labels.first] = stored<Logit>(-INFINITY);
    fill_padding(x, -INFINITY);
    team_.wait();

    auto sums = sums_of(x, merge, smoothing);
    sums.sum = where_a_number(labels.first_logit, where_a_number(labels.second_logit, sums.sum));
    const RowSummary summary(sums, labels.first_score, merge);
    const RowTotals totals(objective_, labels, summary, sums.target);

    const float to_logits = weight * objective_.inverse_temperature;
    const bool has_gradient = rows_.gradient && wanted && objective_.valid && weight != 0;
    float of_classes = 0;
    if (rows_.gradient || smoothing.smooth != 0) {
      const float ceiling = fminf(rows_.ceiling, -no_logits<float>().max);  // finite, for it is taken times 0
      const float scale = totals.total * exponential(-totals.log_sum) * to_logits;
      for_numbers(x, [&](auto& values, const int* place) {
        constexpr int count = sizeof(values) / sizeof(values[0]);
#pragma unroll
        for (int j = 0; j < count; j++) {
          const float beyond = values[j] - totals.max;
          const float target = smoothing.target(place[j], values[j]);
          const float loss = fminf(fmaf(-beyond, totals.inverse_temperature, totals.log_sum), ceiling);
          of_classes = fmaf(target, loss, of_classes);
          const float derivative = power_of_two(beyond * merge.factor) * scale - target * to_logits;
          values[j] = has_gradient ? derivative : 0.0f;
        }
        return rows_.gradient != nullptr;
      });
      of_classes = team_.across(of_classes, Sum());
      if (rows_.gradient) {
        team_.wait();
        if (team_.leads() && has_gradient) {
          labels.for_held(labels.has_first, labels.has_second, smoothing, totals.beyond_labels,
                          [&](int i, float, float score, float target, float others) {
                            x[i] = stored<Logit>(totals.of_label(score, target, others) * to_logits);
                          });
        }
        fill_padding(x, 0);
      }
    }
    const auto results =
        wanted ? results_of_row(rows_, objective_, labels, sums, summary, of_classes) : results_of_masked_row(rows_);
    if (!rows_.sums && team_.leads()) write_results(rows_, RowTeam{1, 0}, row, results);
    return results.loss;
  }

  // Of all classes but the label, for every member of the row.
  __device__ __forceinline__ SumsOf<Kind> sums_of(Logit* x, MergedScores merge,
                                                  const Smoothing<Kind>& smoothing) const {
    auto sums = no_scores<SumsOf<Kind>>();
    for_numbers(x, [&](const auto& values, const int* place) {
      constexpr int count = sizeof(values) / sizeof(values[0]);
      float highest = values[0], terms[2] = {};
#pragma unroll
      for (int j = 1; j < count; j++) highest = Maximum()(highest, values[j]);
      if (highest > sums.max) {
        sums.sum *= merge.ratio(sums.max, highest);
        sums.max = highest;
      }
#pragma unroll
      for (int j = 0; j < count; j++) {
        terms[j % 2] += power_of_two((values[j] - sums.max) * merge.factor);
        sums.target += smoothing.target(place[j], values[j]);
      }
      sums.sum += terms[0] + terms[1];
      return false;
    });
    const float max = team_.across(sums.max, Maximum());
    sums.sum = team_.across(sums.sum * merge.ratio(sums.max, max), Sum());
    sums.max = max;
    sums.target = team_.across(sums.target, Sum());
    return sums;
  }

  // stores = body(values, places) for some of this thread's numbers at once; they are stored if it says so.
  template <class Body>
  __device__ __forceinline__ void for_numbers(Logit* x, Body body) const {
    team_.template for_units<4>([&](auto batch, const int* place) {
      float values[batch];
#pragma unroll
      for (int k = 0; k < batch; k++) values[k] = number(x[place[k]]);
      if (!body(values, place)) return;
#pragma unroll
      for (int k = 0; k < batch; k++) x[place[k]] = stored<Logit>(values[k]);
    });
  }

  // The classes that are not counted.
  __device__ __forceinline__ void fill_padding(Logit* x, float with) const {
    for (int i = static_cast<int>(objective_.classes) + team_.member; i < classes_; i += kWarp / team_.teams) {
      x[i] = stored<Logit>(with);
    }
  }
};

constexpr int kGeneralTileBlocks = 3;  // on a multiprocessor, at least

// As `work_on_tiles`, of rows which have the same options, but for labels and weights.
template <class Logit>
__global__ void __launch_bounds__(kTileThreads, kGeneralTileBlocks)
    cross_entropy_options_general_tiles(CrossEntropyOptionRows<Logit, ClassIndices> rows, Tiles tiles,
                                        int64_t tile_count) {
  OptionTile<Logit> worker(rows, tiles);
  const float* weights = rows.row_weight.one_per_row() ? rows.row_weight.number : nullptr;
  for_tiles(tiled_arrays(rows, weights, rows.gradient, tiles), tiles, tile_count, worker);
  if (rows.sums) write_sums(worker.sum(), rows.sums, rows.parts);
}

}  // namespace jaxloss::gpu
