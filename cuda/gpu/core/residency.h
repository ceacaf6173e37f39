// How many blocks or clusters of a kernel run at once, asked for once a kernel, device and size.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <tuple>

#include "gpu/core/device.h"

namespace jaxloss::gpu {

constexpr int kHopper = 90;
constexpr int kWaves = 16;  // of blocks, so that multiprocessors which get more from memory take more of them

// What `find` sets, for a kernel compiled for GPUs of `least_capability` on; 0 if the device can run none.
template <class Find>
int resident(const void* kernel, const Device& device, int threads, size_t size, int least_capability, Find find) {
  if (device.compute_capability < least_capability) return 0;
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int, size_t, int>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto added = known.try_emplace({kernel, device.ordinal, threads, size, least_capability}, 0);
  int& found = added.first->second;
  if (!added.second) return found;
  const auto find_if_compiled = [&]() -> cudaError_t {
    cudaFuncAttributes attributes;
    if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel)) return error;
    if (attributes.ptxVersion < least_capability) return cudaSuccess;  // compiled for an older GPU
    return find(attributes, found);
  };
  if (find_if_compiled() != cudaSuccess) cudaGetLastError();  // answered: not for the next launch to report
  return found;
}

// Whether what the device would run of the kernel was compiled for Hopper or newer.
inline bool compiled_for_hopper(const void* kernel, const Device& device) {
  const auto find = [](const cudaFuncAttributes&, int& found) {
    found = 1;
    return cudaSuccess;
  };
  return resident(kernel, device, 0, 0, kHopper, find) > 0;
}

// How many blocks run at once. The kernel is allowed that much dynamic shared memory first.
inline int resident_blocks(const void* kernel, const Device& device, int threads, size_t shared_bytes,
                           int least_capability = kHopper) {
  const auto find = [&](const cudaFuncAttributes& attributes, int& blocks) -> cudaError_t {
    const int most_bytes = device.shared_memory_limit - static_cast<int>(attributes.sharedSizeBytes);
    if (const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_bytes)) {
      return error;
    }
    int a_multiprocessor = 0;
    if (const cudaError_t error =
            cudaOccupancyMaxActiveBlocksPerMultiprocessor(&a_multiprocessor, kernel, threads, shared_bytes)) {
      return error;
    }
    blocks = a_multiprocessor * device.multiprocessors;
    return cudaSuccess;
  };
  return resident(kernel, device, threads, shared_bytes, least_capability, find);
}

// How many clusters of so many blocks run at once. The kernel is allowed clusters that large first.
inline int resident_clusters(const void* kernel, const Device& device, int blocks, const cudaLaunchConfig_t& config) {
  constexpr int portable_blocks = 8;
  const auto find = [&](const cudaFuncAttributes&, int& clusters) -> cudaError_t {
    if (blocks > portable_blocks) {
      if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1)) {
        return error;
      }
    }
    return cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
  };
  return resident(kernel, device, static_cast<int>(config.blockDim.x), static_cast<size_t>(blocks), kHopper, find);
}

}  // namespace jaxloss::gpu
