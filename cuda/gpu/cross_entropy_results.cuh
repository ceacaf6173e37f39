// What the kernels of cross entropy with options share: the threads of a row, and what is written of it.
#pragma once

#include "gpu/softmax.cuh"
#include "gpu/vector.cuh"
#include "rows.h"

namespace jaxloss::gpu {

constexpr int kOptionThreads = 256;

// `lanes` threads: neighbours in a warp, or all of a block.
struct RowTeam {
  int lanes;
  int lane;

  template <class Value, class Combine>
  __device__ __forceinline__ Value across(Value value, Combine combine) const {
    return lanes <= kWarp ? across_lanes(value, lanes, combine) : across_block<kOptionThreads>(value, combine);
  }
};

// Of a row, from a class on.
template <class Rows>
__device__ __forceinline__ void zero_gradient(const Rows& rows, const RowTeam& team, int64_t row, int64_t first) {
  using Logit = std::remove_pointer_t<decltype(rows.gradient)>;
  if (!rows.gradient) return;
  Logit* gradient = rows.gradient + row * rows.classes;
  const Span<Logit> span(rows.classes - first, gradient + first);
  const Accumulator<Logit> zeros[kPerVector<Logit>] = {};
  for (int64_t k = team.lane; k < span.edges; k += team.lanes) gradient[first + span.edge(k)] = Logit{};
  for (int64_t k = team.lane; k < span.steps; k += team.lanes) store<Logit>(gradient + first + span.start_of(k), zeros);
}

template <class Real>
struct RowResults {
  Real loss, max, log_sum, nll, entropy;
  int predicted, rank;
};

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
