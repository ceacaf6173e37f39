// Threads that work on a row together.
#pragma once

#include "gpu/core/reduce.cuh"
#include "gpu/core/vector.cuh"

namespace jaxloss::gpu {

constexpr int kTeamThreads = 256;

// `lanes` threads: neighbours in a warp, or all of a block.
struct RowTeam {
  int lanes;
  int lane;

  template <class Value, class Combine>
  __device__ __forceinline__ Value across(Value value, Combine combine) const {
    return lanes <= kWarp ? across_lanes(value, lanes, combine) : across_block<kTeamThreads>(value, combine);
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

}  // namespace jaxloss::gpu
