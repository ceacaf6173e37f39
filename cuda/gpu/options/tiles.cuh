// Cross entropy of very short rows with labels, in tiles, with a z-loss, a temperature and class weights.
#pragma once

#include "gpu/rows/labelled_tiles.cuh"

namespace jaxloss::gpu {

// exp((x − max) / temperature), of the numbers as they are in the row.
struct ScaledExponentials {
  float max, factor;

  __device__ __forceinline__ float term(float x) const { return power_of_two((x - max) * factor); }
  static __device__ __forceinline__ float corrected(float factor_of_terms) { return factor_of_terms; }
};

template <class Logit_>
struct LinearObjective {
  using Logit = Logit_;
  using Number = float;
  const CrossEntropyOptionRows<Logit, ClassIndices>& rows;
  float inverse_temperature, z_loss;

  __device__ __forceinline__ explicit LinearObjective(const CrossEntropyOptionRows<Logit, ClassIndices>& rows_)
      : rows(rows_), inverse_temperature(1 / rows_.temperature.of(0)), z_loss(rows_.z_loss.of(0)) {}

  __device__ __forceinline__ bool weight_a_row() const { return rows.row_weight.one_per_row(); }
  __device__ __forceinline__ const float* weights() const { return rows.row_weight.number; }
  __device__ __forceinline__ float weight_of_all() const { return rows.row_weight.of(0); }
  __device__ __forceinline__ bool has_gradient() const { return rows.gradient; }
  __device__ __forceinline__ float logit(float x) const { return x * inverse_temperature; }
  __device__ __forceinline__ ScaledExponentials terms(float max) const {
    return {max, inverse_temperature * 1.44269504f};
  }
  __device__ __forceinline__ void store(int64_t row, float loss, float, float) const { rows.loss[row] = loss; }

  struct Row {
    LabelledSums<float> sums;
    float label_logit, target, z_loss, ceiling, inverse_temperature;
    float lse, of_z_loss;

    __device__ __forceinline__ float loss() const {
      const float nll = negative_log_likelihood(sums.log_sum, label_logit - sums.max, ceiling);
      return where_a_number(sums.log_sum, weighted(target, nll) + weighted(z_loss, lse * lse));
    }
    __device__ __forceinline__ float scale(float weight) const {
      return (target + of_z_loss) * weight * inverse_temperature * sums.inverse;
    }
    __device__ __forceinline__ float label_derivative(float weight) const {
      const float derivative = target * sums.label_derivative() + of_z_loss * (sums.label * sums.inverse);
      return derivative * (weight * inverse_temperature);
    }
  };
  __device__ __forceinline__ Row row(const LabelledSums<float>& sums, float label_logit, int index, bool valid) const {
    const float target = rows.class_weights && valid ? __ldg(rows.class_weights + index) : 1.0f;
    const float lse = sums.max + sums.log_sum;
    return {sums, label_logit, target, z_loss, rows.ceiling, inverse_temperature, lse, 2 * weighted(z_loss, lse)};
  }
};

// The gradient is made if rows have one.
template <int unit, int held, bool exactly, class Logit>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    cross_entropy_options_tiles(CrossEntropyOptionRows<Logit, ClassIndices> rows, Tiles tiles, int64_t tile_count) {
  work_on_tiles<true, unit, held, exactly>(LinearObjective<Logit>(rows), tiles, tile_count);
}

}  // namespace jaxloss::gpu
