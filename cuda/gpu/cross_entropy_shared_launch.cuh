// How the blocks of a cluster share a row.
#pragma once

#include <map>
#include <mutex>
#include <tuple>

#include "gpu/cross_entropy_shared.cuh"
#include "gpu/device.h"

namespace jaxloss::gpu {

struct SharedShape {
  int blocks;  // in a cluster; 0: the row does not fit, or the GPU has no clusters
  int threads;
  int slice_steps;
};

// Blocks of up to 256 threads, as few as hold the row; of up to 512, where a cluster would be larger than any GPU with
// clusters is sure to take. More blocks, where there are fewer rows than would keep all multiprocessors at work.
template <class Logit>
SharedShape shared_shape(const CrossEntropyRows<Logit, ClassIndices>& rows, const Device& device) {
  constexpr int few_threads = 256, sure_blocks = 8;
  if (device.compute_capability < 90) return {};
  const auto ahead = [](const void* pointer, int64_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes; };
  if (rows.gradient && ahead(rows.gradient, kVectorBytes) != ahead(rows.logits, kVectorBytes)) return {};
  const bool even = ahead(rows.logits, 128) == 0 && rows.classes * static_cast<int64_t>(sizeof(Logit)) % 128 == 0;
  const int64_t steps = rows.classes / kPerVector<Logit> + (even ? 0 : kStepsAligned - 1);
  const auto blocks_of = [&](int64_t threads) {
    const int64_t held = threads * kHeldSteps;
    return steps <= held ? 1 : (steps + held - 1) / held;
  };
  int64_t blocks = blocks_of(few_threads);
  if (blocks > sure_blocks) blocks = blocks_of(kMostThreads);
  if (blocks > kMostBlocks) return {};
  while (blocks * 2 <= sure_blocks && rows.rows * blocks * 2 <= device.multiprocessors && steps / blocks > 1024) {
    blocks *= 2;
  }
  if (rows.rows > 0x7fffffff / blocks) return {};
  const int64_t slice_steps = ((steps + blocks - 1) / blocks + kStepsAligned - 1) / kStepsAligned * kStepsAligned;
  const int64_t warps = (slice_steps + kHeldSteps * kWarp - 1) / (kHeldSteps * kWarp);
  return {static_cast<int>(blocks), static_cast<int>(warps < 1 ? 1 : warps) * kWarp, static_cast<int>(slice_steps)};
}

// Whether the device can run clusters of that shape: asked for once. The kernel is set up for them first.
inline bool runs(const void* kernel, const Device& device, const SharedShape& shape, const cudaLaunchConfig_t& config) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int, int>, bool> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = known.try_emplace({kernel, device.ordinal, shape.blocks, shape.threads}, false);
  bool& can = entry->second;
  if (!is_new) return can;
  const auto find = [&]() -> cudaError_t {
    cudaFuncAttributes found;
    if (const cudaError_t error = cudaFuncGetAttributes(&found, kernel)) return error;
    if (found.ptxVersion < 90) return cudaSuccess;  // compiled for an older GPU: the kernel's body is not there
    if (shape.blocks > 8) {
      if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1)) {
        return error;
      }
    }
    int clusters = 1;
    if (shape.blocks > 1) {
      if (const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config)) return error;
    }
    can = clusters > 0;
    return cudaSuccess;
  };
  if (find() != cudaSuccess) cudaGetLastError();  // answered: not for the next launch to report
  return can;
}

// cudaErrorNotSupported where no cluster of that shape can run.
template <class Logit>
cudaError_t launch_shared(cudaStream_t stream, const CrossEntropyRows<Logit, ClassIndices>& rows, const Device& device,
                          const SharedShape& shape) {
  const auto kernel = rows.gradient ? cross_entropy_shared<true, Logit> : cross_entropy_shared<false, Logit>;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(shape.blocks), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(rows.rows * shape.blocks));
  config.blockDim = dim3(shape.threads);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = shape.blocks > 1 ? 1 : 0;
  if (!runs(reinterpret_cast<const void*>(kernel), device, shape, config)) return cudaErrorNotSupported;
  return cudaLaunchKernelEx(&config, kernel, rows, shape.slice_steps);
}

}  // namespace jaxloss::gpu
