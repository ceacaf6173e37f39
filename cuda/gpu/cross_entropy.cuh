// Cross entropy: which kernel takes which rows. One .cu file instantiates `launch` for each stored type of logits.
#pragma once

#include <cstdlib>
#include <cstring>

#include "gpu/cross_entropy_registers.cuh"
#include "gpu/cross_entropy_shared_launch.cuh"
#include "gpu/cross_entropy_streaming.cuh"
#include "gpu/device.h"
#include "gpu/launch.h"

namespace jaxloss::gpu {

enum class Regime { any, registers, shared, streaming };

// JAXLOSS_CROSS_ENTROPY_KERNEL, for tests: heeded wherever that kernel can take the rows.
inline Regime asked_for() {
  static const Regime regime = [] {
    const char* name = std::getenv("JAXLOSS_CROSS_ENTROPY_KERNEL");
    if (name == nullptr) return Regime::any;
    if (std::strcmp(name, "registers") == 0) return Regime::registers;
    if (std::strcmp(name, "shared") == 0) return Regime::shared;
    if (std::strcmp(name, "streaming") == 0) return Regime::streaming;
    return Regime::any;
  }();
  return regime;
}

template <class Logit>
constexpr bool kHasSharedKernel = !std::is_same_v<Logit, double>;

// Registers while a warp can hold a row in them; then those of a cluster, where the GPU has clusters, one can hold the
// row, and streaming would read it twice: for a gradient, or with probabilities. Else streaming.
template <class Logit, class Target>
cudaError_t launch(cudaStream_t stream, const CrossEntropyRows<Logit, Target>& rows) {
  if (rows.rows == 0) return cudaSuccess;
  const Regime asked = asked_for();
  if (asked == Regime::any || asked == Regime::registers) {
    const RegistersShape shape = registers_shape(rows);
    if (shape.slots > 0) return launch_registers(stream, rows, shape);
  }
  if constexpr (kHasSharedKernel<Logit>) {
    constexpr bool by_index = std::is_same_v<Target, ClassIndices>;
    if (asked == Regime::shared || (asked == Regime::any && (rows.gradient || !by_index))) {
      Device device;
      if (const cudaError_t error = find_current_device(device)) return error;
      const SharedShape shape = shared_shape(rows, device);
      if (shape.blocks > 0) {
        const cudaError_t error = launch_shared(stream, rows, device, shape);
        if (error != cudaErrorNotSupported) return error;
      }
    }
  }
  return launch_streaming(stream, rows);
}

}  // namespace jaxloss::gpu
