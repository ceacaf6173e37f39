// How many blocks of a kernel run at once, asked for once a kernel, device and size.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <tuple>

#include "gpu/device.h"

namespace jaxloss::gpu {

constexpr int kHopper = 90;

// Of a kernel whose body is compiled for Hopper on; 0 if the device can run none. It is allowed that much dynamic
// shared memory first.
inline int resident_blocks(const void* kernel, const Device& device, int threads, size_t shared_bytes) {
  if (device.compute_capability < kHopper) return 0;
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, size_t>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = known.try_emplace({kernel, device.ordinal, shared_bytes}, 0);
  int& blocks = entry->second;
  if (!is_new) return blocks;
  const auto find = [&]() -> cudaError_t {
    cudaFuncAttributes found;
    if (const cudaError_t error = cudaFuncGetAttributes(&found, kernel)) return error;
    if (found.ptxVersion < kHopper) return cudaSuccess;  // compiled for an older GPU: the kernel's body is not there
    const int most_bytes = device.shared_memory_limit - static_cast<int>(found.sharedSizeBytes);
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
  if (find() != cudaSuccess) cudaGetLastError();  // answered: not for the next launch to report
  return blocks;
}

}  // namespace jaxloss::gpu
