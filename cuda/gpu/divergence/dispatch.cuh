// Divergences of distributions: which kernel takes which rows. One .cu file instantiates `launch` for each stored type
// of logits.
#pragma once

#include "gpu/core/regime.h"
#include "gpu/divergence/held_launch.cuh"
#include "gpu/divergence/teams.cuh"
#include "gpu/launch.h"

namespace jaxloss::gpu {

template <class Divergence, class Logit, class Teacher>
cudaError_t launch(cudaStream_t stream, const DivergenceRows<Divergence, Logit, Teacher>& rows) {
  if (rows.rows == 0) return cudaSuccess;
  if constexpr (std::is_same_v<Teacher, TeacherLogits<Logit>> && !std::is_same_v<Logit, double>) {
    const bool may_be_held = asked_for() != Regime::streaming;
    const cudaError_t error = may_be_held ? launch_held(stream, rows) : cudaErrorNotSupported;
    if (error != cudaErrorNotSupported) return error;
  }
  return launch_teams(stream, rows);
}

}  // namespace jaxloss::gpu
