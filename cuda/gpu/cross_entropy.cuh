// Cross entropy: which kernel takes which rows. One .cu file instantiates `launch` for each stored type of logits.
#pragma once

#include <cstdlib>
#include <cstring>
#include <utility>

#include "gpu/cross_entropy_cluster_launch.cuh"
#include "gpu/cross_entropy_registers.cuh"
#include "gpu/cross_entropy_streaming.cuh"
#include "gpu/cross_entropy_tiles_launch.cuh"
#include "gpu/cross_entropy_value.cuh"
#include "gpu/device.h"
#include "gpu/launch.h"

namespace jaxloss::gpu {

enum class Regime { any, tiles, registers, value, cluster, streaming };

// JAXLOSS_CROSS_ENTROPY_KERNEL, for tests: heeded wherever that kernel can take the rows.
inline Regime asked_for() {
  static const Regime regime = [] {
    const std::pair<const char*, Regime> names[] = {{"tiles", Regime::tiles},
                                                    {"registers", Regime::registers},
                                                    {"value", Regime::value},
                                                    {"cluster", Regime::cluster},
                                                    {"streaming", Regime::streaming}};
    if (const char* asked = std::getenv("JAXLOSS_CROSS_ENTROPY_KERNEL")) {
      for (const auto& [name, named] : names) {
        if (std::strcmp(asked, name) == 0) return named;
      }
    }
    return Regime::any;
  }();
  return regime;
}

// The kernels of Hopper: the cluster's takes both kinds of target, those that the copy engine feeds class indices.
template <class Logit>
constexpr bool kHasClusterKernel = !std::is_same_v<Logit, double>;
template <class Logit, class Target>
constexpr bool kHasFedKernels = std::is_same_v<Target, ClassIndices> && !std::is_same_v<Logit, double>;

// Of 16-bit rows whose gradient is wanted a warp holds up to 4 KB as fast as a block does, of others 8 KB.
template <class Logit, class Target>
bool long_for_a_warp(const CrossEntropyRows<Logit, Target>& rows, const RegistersShape& shape) {
  return kHasFedKernels<Logit, Target> && sizeof(Logit) == 2 && rows.gradient && shape.slots > 8;
}

// Very many short rows go in tiles through shared memory, fewer or longer ones through the registers of a warp while it
// can hold one there. Then a value alone is streamed through shared memory up to 64 KB a row, and what would be read
// twice, for a gradient or with probabilities, is held in the registers of a cluster, where the GPU has clusters and
// one can hold a row. All that is left is streamed by a block a row.
template <class Logit, class Target>
cudaError_t launch(cudaStream_t stream, const CrossEntropyRows<Logit, Target>& rows) {
  if (rows.rows == 0) return cudaSuccess;
  const Regime asked = asked_for();
  const auto may_be = [&](Regime regime) { return asked == Regime::any || asked == regime; };
  Device device;
  if (const cudaError_t error = find_current_device(device)) return error;
  if constexpr (kHasFedKernels<Logit, Target>) {
    if (may_be(Regime::tiles)) {
      const cudaError_t error = launch_tiles(stream, rows, device, asked == Regime::any ? 4 : 0);
      if (error != cudaErrorNotSupported) return error;
    }
  }
  const RegistersShape registers = may_be(Regime::registers) ? registers_shape(rows) : RegistersShape{0, 0};
  if (registers.slots > 0 && !long_for_a_warp(rows, registers)) return launch_registers(stream, rows, registers);
  if constexpr (kHasFedKernels<Logit, Target>) {
    if (may_be(Regime::value) && !rows.gradient) {
      const cudaError_t error = launch_value(stream, rows, device, asked == Regime::value);
      if (error != cudaErrorNotSupported) return error;
    }
  }
  if constexpr (kHasClusterKernel<Logit>) {
    const bool read_twice = rows.gradient || !std::is_same_v<Target, ClassIndices>;
    if (asked == Regime::cluster || (asked == Regime::any && read_twice)) {
      const ClusterShape shape = cluster_shape(rows, device);
      if (shape.blocks > 0) {
        const cudaError_t error = launch_cluster(stream, rows, device, shape);
        if (error != cudaErrorNotSupported) return error;
      }
    }
  }
  return registers.slots > 0 ? launch_registers(stream, rows, registers) : launch_streaming(stream, rows);
}

}  // namespace jaxloss::gpu
