// How the blocks of a cluster share rows that pass through shared memory, and how many clusters there are.
#pragma once

#include <map>
#include <mutex>
#include <tuple>

#include "gpu/cross_entropy_shared.cuh"
#include "gpu/device.h"

namespace jaxloss::gpu {

// How blocks share a row.
struct SharedShape {
  int blocks;  // in a cluster; 0: the row does not fit, or the GPU has no clusters
  int slice_steps;
  size_t shared_bytes() const { return static_cast<size_t>(kStages) * slice_steps * kVectorBytes; }
};

// As few blocks as have room for the row's stages, more where there are fewer rows than would keep all multiprocessors
// at work.
template <class Logit>
SharedShape shared_shape(const CrossEntropyRows<Logit, ClassIndices>& rows, const Device& device) {
  const auto misaligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes; };
  if (device.compute_capability < 90) return {0, 0};
  if (rows.gradient && misaligned(rows.gradient) != misaligned(rows.logits)) return {0, 0};
  const int64_t steps = rows.classes / kPerVector<Logit>;
  // A bulk copy is fastest from and to a multiple of 128 bytes; 1 KB is for the static shared memory.
  const auto slice_steps = [&](int blocks) { return ((steps + blocks - 1) / blocks + 7) / 8 * 8; };
  const int64_t most_steps = (device.shared_memory_limit - 1024) / kStages / kVectorBytes;
  int blocks = 1;
  while (blocks <= kMostBlocks && slice_steps(blocks) > most_steps) blocks *= 2;
  if (blocks > kMostBlocks) return {0, 0};
  while (blocks < 8 && rows.rows * blocks * 2 <= device.multiprocessors && slice_steps(blocks) > 1024) blocks *= 2;
  return {blocks, static_cast<int>(slice_steps(blocks))};
}

template <class Logit>
using SharedKernel = void (*)(CrossEntropyRows<Logit, ClassIndices>, int);

// How many clusters of that shape run at once on the device; 0 if none can. The kernel is set up for it first.
inline int resident_clusters(const void* kernel, const Device& device, const SharedShape& shape,
                             cudaLaunchConfig_t config) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int, size_t>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = known.try_emplace({kernel, device.ordinal, shape.blocks, shape.shared_bytes()}, 0);
  int& clusters = entry->second;
  if (!is_new) return clusters;
  const auto find = [&]() -> cudaError_t {
    cudaFuncAttributes found;
    if (const cudaError_t error = cudaFuncGetAttributes(&found, kernel)) return error;
    if (found.ptxVersion < 90) return cudaSuccess;  // compiled for an older GPU: the kernel's body is not there
    const int most_bytes = device.shared_memory_limit - static_cast<int>(found.sharedSizeBytes);
    if (const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_bytes)) {
      return error;
    }
    if (shape.blocks > 8) {
      if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1)) {
        return error;
      }
    }
    if (shape.blocks > 1) return cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
    if (const cudaError_t error =
            cudaOccupancyMaxActiveBlocksPerMultiprocessor(&clusters, kernel, kSharedThreads, config.dynamicSmemBytes)) {
      return error;
    }
    clusters *= device.multiprocessors;
    return cudaSuccess;
  };
  if (find() != cudaSuccess) {
    clusters = 0;
    cudaGetLastError();  // answered: not for the next launch to report
  }
  return clusters;
}

// cudaErrorNotSupported where no cluster of that shape can run.
template <class Logit>
cudaError_t launch_shared(cudaStream_t stream, const CrossEntropyRows<Logit, ClassIndices>& rows, const Device& device,
                          const SharedShape& shape) {
  const SharedKernel<Logit> kernel =
      rows.gradient ? cross_entropy_shared<true, Logit> : cross_entropy_shared<false, Logit>;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(shape.blocks), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.blocks);
  config.blockDim = dim3(kSharedThreads);
  config.dynamicSmemBytes = shape.shared_bytes();
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = shape.blocks > 1 ? 1 : 0;
  const int resident = resident_clusters(reinterpret_cast<const void*>(kernel), device, shape, config);
  if (resident == 0) return cudaErrorNotSupported;
  const int64_t clusters = rows.rows < resident ? rows.rows : resident;
  config.gridDim = dim3(static_cast<unsigned>(clusters * shape.blocks));
  return cudaLaunchKernelEx(&config, kernel, rows, shape.slice_steps);
}

}  // namespace jaxloss::gpu
