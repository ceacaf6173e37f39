// What the kernels of cross entropy with options write of a row.
#pragma once

#include "gpu/rows/team.cuh"

namespace jaxloss::gpu {

template <class Real>
struct RowResults {
  Real loss, max, log_sum, nll, entropy;
  int predicted, rank;
};

template <class Rows>
__device__ __forceinline__ RowResults<typename Rows::Real> results_of_masked_row(const Rows& rows) {
  return {0, 0, 0, 0, 0, -1, static_cast<int>(rows.smoothed_classes)};
}

template <class Rows, class Real>
__device__ __forceinline__ void write_results(const Rows& rows, const RowTeam& team, int64_t row,
                                              const RowResults<Real>& results) {
  if (team.lane != 0) return;
  if (rows.loss) rows.loss[row] = results.loss;
  if (rows.max) rows.max[row] = results.max;
  if (rows.log_sum) rows.log_sum[row] = results.log_sum;
  if (rows.nll) rows.nll[row] = results.nll;
  if (rows.entropy) rows.entropy[row] = results.entropy;
  if (rows.predicted) rows.predicted[row] = results.predicted;
  if (rows.rank) rows.rank[row] = results.rank;
}

}  // namespace jaxloss::gpu
