// Cross entropy with options: which kernel takes which rows.
#pragma once

#include "gpu/core/regime.h"
#include "gpu/launch.h"
#include "gpu/options/held_launch.cuh"
#include "gpu/options/streaming.cuh"
#include "gpu/options/teams.cuh"
#include "gpu/options/tiles_launch.cuh"

namespace jaxloss::gpu {

template <class Logit, class Target>
cudaError_t launch(cudaStream_t stream, const CrossEntropyOptionRows<Logit, Target>& all_rows) {
  auto rows = all_rows;
  if (rows.rows == 0 && !rows.sums) return cudaSuccess;
  if constexpr (std::is_same_v<Target, ClassIndices> && !std::is_same_v<Logit, double>) {
    const Regime asked = asked_for();
    Device device;
    if (const cudaError_t error = find_current_device(device)) return error;
    cudaError_t error = cudaErrorNotSupported;
    if (asked == Regime::any || asked == Regime::tiles) {
      error = launch_tiles(stream, rows, device, asked == Regime::any ? 1 : 0);
      if (error != cudaErrorNotSupported && (error != cudaSuccess || (rows.rows == 0 && !rows.sums))) return error;
      error = cudaErrorNotSupported;
    }
    if (rows.sums) return launch_teams(stream, rows);
    if (asked == Regime::streaming || (asked == Regime::any && good_for_streaming(rows, device))) {
      error = launch_streaming(stream, rows);
    }
    if (error == cudaErrorNotSupported && asked != Regime::streaming && asked != Regime::teams) {
      error = launch_held(stream, rows, device);
    }
    if (error != cudaErrorNotSupported) return error;
  }
  return launch_teams(stream, rows);
}

}  // namespace jaxloss::gpu
