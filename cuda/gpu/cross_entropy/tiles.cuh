// Cross entropy without options of very short rows, in tiles.
#pragma once

#include "gpu/rows/labelled_tiles.cuh"

namespace jaxloss::gpu {

template <class Logit_>
struct PlainObjective {
  using Logit = Logit_;
  using Number = Logit;
  const CrossEntropyRows<Logit, ClassIndices>& rows;

  __device__ __forceinline__ bool weight_a_row() const { return rows.rows_per_weight == 1; }
  __device__ __forceinline__ const float* weights() const { return rows.row_weight; }
  __device__ __forceinline__ float weight_of_all() const { return rows.row_weight[0]; }
  static constexpr bool has_gradient() { return true; }
  static __device__ __forceinline__ float logit(float x) { return x; }
  static __device__ __forceinline__ ExponentialsOf<Logit> terms(float max) { return ExponentialsOf<Logit>(max); }
  __device__ __forceinline__ void store(int64_t row, float loss, float max, float log_sum) const {
    rows.store_results(row, loss, max, log_sum);
  }

  struct Row {
    LabelledSums<float> sums;
    float label_logit, ceiling;

    __device__ __forceinline__ float loss() const {
      return negative_log_likelihood(sums.log_sum, label_logit - sums.max, ceiling);
    }
    __device__ __forceinline__ float scale(float weight) const { return weight * sums.inverse; }
    __device__ __forceinline__ float label_derivative(float weight) const { return sums.label_derivative() * weight; }
  };
  __device__ __forceinline__ Row row(const LabelledSums<float>& sums, float label_logit, int, bool) const {
    return {sums, label_logit, rows.ceiling};
  }
};

template <bool kGradient, int unit, int held, bool exactly, class Logit>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    cross_entropy_tiles(CrossEntropyRows<Logit, ClassIndices> rows, Tiles tiles, int64_t tile_count) {
  work_on_tiles<kGradient, unit, held, exactly>(PlainObjective<Logit>{rows}, tiles, tile_count);
}

}  // namespace jaxloss::gpu
