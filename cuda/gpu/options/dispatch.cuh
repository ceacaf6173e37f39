// Cross entropy with options: which kernel takes which rows.
#pragma once

#include "gpu/core/regime.h"
#include "gpu/launch.h"
#include "gpu/options/held_launch.cuh"
#include "gpu/options/teams.cuh"

namespace jaxloss::gpu {

template <class Logit, class Target>
cudaError_t launch(cudaStream_t stream, const CrossEntropyOptionRows<Logit, Target>& rows) {
  if (rows.rows == 0) return cudaSuccess;
  if constexpr (std::is_same_v<Target, ClassIndices> && !std::is_same_v<Logit, double>) {
    const bool may_be_held = asked_for() != Regime::streaming;
    const cudaError_t error = may_be_held ? launch_held(stream, rows) : cudaErrorNotSupported;
    if (error != cudaErrorNotSupported) return error;
  }
  return launch_teams(stream, rows);
}

}  // namespace jaxloss::gpu
