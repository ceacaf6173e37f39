// What a launcher has to know of the current device, asked for once a device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <mutex>

namespace jaxloss::gpu {

struct Device {
  int ordinal;
  int multiprocessors;
  int compute_capability;      // 90 for 9.0
  int shared_memory_limit;     // of a block, in bytes
  int memory_bytes_per_clock;  // for each multiprocessor, at their highest clocks; 0: not known

  // Whether memory brings numbers faster than kernels that take many instructions for each can use them: 18 bytes on an
  // H200, 12 on an H100 SXM.
  bool has_fast_memory() const { return memory_bytes_per_clock > 15; }
};

inline int64_t quotient_rounded_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline cudaError_t find_current_device(Device& device) {
  if (const cudaError_t error = cudaGetDevice(&device.ordinal)) return error;
  static std::mutex mutex;
  static std::map<int, Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = known.find(device.ordinal); found != known.end()) {
    device = found->second;
    return cudaSuccess;
  }
  int major = 0, minor = 0, clock = 0, memory_clock = 0, memory_bits = 0;
  const auto ask = [&](int& value, cudaDeviceAttr attribute) {
    return cudaDeviceGetAttribute(&value, attribute, device.ordinal);
  };
  if (const cudaError_t error = ask(device.multiprocessors, cudaDevAttrMultiProcessorCount)) return error;
  if (const cudaError_t error = ask(device.shared_memory_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin)) return error;
  if (const cudaError_t error = ask(major, cudaDevAttrComputeCapabilityMajor)) return error;
  if (const cudaError_t error = ask(minor, cudaDevAttrComputeCapabilityMinor)) return error;
  device.compute_capability = 10 * major + minor;
  // These only tune: a device without them has the kernels for slow memory.
  const bool has_rates = !ask(clock, cudaDevAttrClockRate) && !ask(memory_clock, cudaDevAttrMemoryClockRate) &&
                         !ask(memory_bits, cudaDevAttrGlobalMemoryBusWidth) && clock > 0;
  if (!has_rates) cudaGetLastError();
  const int64_t memory_rate = int64_t{2} * memory_clock * (memory_bits / 8);  // two transfers a clock
  device.memory_bytes_per_clock =
      has_rates ? static_cast<int>(memory_rate / (int64_t{clock} * device.multiprocessors)) : 0;
  known[device.ordinal] = device;
  return cudaSuccess;
}

}  // namespace jaxloss::gpu
