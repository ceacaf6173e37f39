// Which threads hold a row in shared memory, and how they put together what each has summed of it.
#pragma once

#include <algorithm>

#include "gpu/core/alignment.h"
#include "gpu/rows/cluster.cuh"
#include "gpu/rows/cluster_launch.cuh"
#include "gpu/rows/held.cuh"
#include "gpu/rows/team.cuh"

namespace jaxloss::gpu {

// ---- lanes of a warp ---------------------------------------------------------------------------------------------

constexpr int kLanesThreads = 128;

struct LanesOfRow {
  static constexpr Caching caching = Caching::evict_first;
  int lanes, own;

  // Of sums that the lanes have already merged. No lane writes before all have read: the gradient may be in the logits'
  // place.
  template <class Sums, class Merge>
  __device__ __forceinline__ Sums merged(const Sums& sums, const Sums&, Merge, bool) const {
    __syncwarp();
    return sums;
  }
  template <class Value, class Combine>
  __device__ __forceinline__ Value combined(const Value& value, const Value&, Combine combine, bool, bool) const {
    return across_lanes(value, lanes, combine);
  }
  __device__ __forceinline__ int lane() const { return own; }
  __device__ __forceinline__ bool leads() const { return own == 0; }
  __device__ __forceinline__ RowTeam threads() const { return {lanes, own}; }
};

// What this thread holds, one of `lanes` in a row, from `slots` of its block on.
template <class Logit>
__device__ __forceinline__ Held<Logit> held_by_lanes(const Logit* logits, int64_t classes, uint4* slots, int lanes) {
  const Span<Logit> span(classes, logits);
  const int own = static_cast<int>(threadIdx.x) & (lanes - 1), steps = static_cast<int>(span.steps);
  return {logits,
          slots + threadIdx.x,
          static_cast<int>(span.head),
          steps,
          static_cast<int>(span.edges),
          own,
          steps,
          lanes,
          own,
          lanes};
}

struct LanesShape {
  int lanes;  // 0: the row is too long
  int64_t blocks, shared_bytes;

  explicit operator bool() const { return lanes > 0; }
};

// Lanes that hold up to so many vectors each.
template <class Rows>
LanesShape lanes_shape(const Rows& rows, int vectors) {
  using Logit = std::remove_cv_t<std::remove_pointer_t<decltype(rows.logits)>>;
  constexpr int step = kPerVector<Logit>;
  if (rows.classes * static_cast<int64_t>(sizeof(Logit)) > vectors * kWarp * kVectorBytes) return {};
  const int64_t steps = rows.classes / step;
  int lanes = fewest_lanes(rows);
  while (lanes < kWarp && lanes * vectors < steps) lanes *= 2;
  return {lanes, quotient_rounded_up(rows.rows, kLanesThreads / lanes),
          quotient_rounded_up(steps, lanes) * kLanesThreads * kVectorBytes};
}

// ---- a cluster ---------------------------------------------------------------------------------------------------

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

template <class Sums, class Value>
struct ClusterOfRow {
  static constexpr Caching caching = Caching::normal;
  static constexpr int lanes = kWarp;
  Exchange<Sums>& exchange;
  Exchange<Value>& values;

  // Of sums that the lanes of each warp have already merged.
  template <class Merge>
  __device__ __forceinline__ Sums merged(const Sums& sums, const Sums& none, Merge merge, bool wanted) const {
    cluster_wait();
    if (!wanted) return sums;
    exchange.publish(sums, cluster_size());
    return exchange.all(none, merge);
  }
  // For every thread, or for the warp that leads.
  template <class Combine>
  __device__ __forceinline__ Value combined(const Value& value, const Value& none, Combine combine, bool wanted,
                                            bool everywhere) const {
    if (!wanted) return none;
    values.publish(across_lanes(value, kWarp, combine), everywhere ? cluster_size() : 1);
    if (!everywhere && (cluster_rank() != 0 || threadIdx.x >= kWarp)) return none;
    return values.all(none, combine);
  }
  __device__ __forceinline__ int lane() const { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ __forceinline__ bool leads() const { return cluster_rank() == 0 && threadIdx.x == 0; }
  __device__ __forceinline__ RowTeam threads() const {
    const int count = static_cast<int>(blockDim.x);
    return {cluster_size() * count, cluster_rank() * count + static_cast<int>(threadIdx.x)};
  }
};

// What this thread holds, in a cluster whose blocks share a row in slices of `slice_steps` steps.
template <class Logit>
__device__ __forceinline__ Held<Logit> held_by_cluster(const Logit* logits, int64_t classes, uint4* slots,
                                                       int slice_steps) {
  const Span<Logit> span(classes, logits);
  // Slices begin at multiples of 128 bytes: a row's steps are numbered from the last one before the first step.
  const int ahead = static_cast<int>(reinterpret_cast<uintptr_t>(logits + span.head) / kVectorBytes % kStepsAligned);
  const int begin = cluster_rank() * slice_steps - ahead, threads = static_cast<int>(blockDim.x);
  const int own = begin + static_cast<int>(threadIdx.x), steps = static_cast<int>(span.steps);
  return {logits,
          slots + threadIdx.x,
          static_cast<int>(span.head),
          steps,
          cluster_rank() == 0 ? static_cast<int>(span.edges) : 0,
          own < 0 ? own + threads : own,
          min(begin + slice_steps, steps),
          threads,
          static_cast<int>(threadIdx.x),
          threads};
}

#endif

// How much of rows a block holds: its threads, vectors of each row a thread, where one block is enough too, and rows
// that are held together. Of a row that is too long for a cluster of such blocks a thread holds more.
struct HeldLimits {
  int threads, vectors, vectors_of_one_block, rows;
};

// How a cluster holds a row of `steps` in shared memory.
inline ClusterShape held_shape(int64_t steps, const Device& device, const HeldLimits& limits) {
  constexpr int64_t bytes_beside = 12288;
  const int64_t threads = limits.threads;
  const int64_t room = (device.shared_memory_limit - bytes_beside) / (threads * limits.rows * kVectorBytes);
  const bool one_block = steps <= threads * limits.vectors_of_one_block;
  const int64_t fewest = quotient_rounded_up(steps, threads * kMaxClusterSize);
  const int64_t wanted = std::max<int64_t>(fewest, one_block ? limits.vectors_of_one_block : limits.vectors);
  const int64_t vectors = std::min(room, wanted);
  const int64_t blocks = std::max<int64_t>(1, quotient_rounded_up(steps, threads * vectors));
  const int64_t slice = quotient_rounded_up(quotient_rounded_up(steps, blocks), kStepsAligned) * kStepsAligned;
  const int64_t warps = std::max<int64_t>(1, quotient_rounded_up(slice, vectors * kWarp));
  const int64_t own_threads = std::min(warps * kWarp, threads);
  return {static_cast<int>(blocks), static_cast<int>(own_threads), static_cast<int>(slice),
          static_cast<int>(quotient_rounded_up(slice, own_threads))};
}

// cudaErrorNotSupported where the GPU has no clusters, or none that could hold a row.
template <class Rows>
cudaError_t launch_held_by_cluster(cudaStream_t stream, void (*kernel)(Rows, int), const Rows& rows,
                                   const Device& device, const HeldLimits& limits) {
  if (device.compute_capability < kHopper) return cudaErrorNotSupported;
  const ClusterShape shape = held_shape(held_row_steps(rows), device, limits);
  if (shape.blocks > kMaxClusterSize || rows.rows > 0x7fffffff / shape.blocks) return cudaErrorNotSupported;
  const int shared_bytes = shape.held * shape.threads * limits.rows * kVectorBytes;
  if (resident_blocks(reinterpret_cast<const void*>(kernel), device, shape.threads, shared_bytes) == 0) {
    return cudaErrorNotSupported;
  }
  return launch_cluster(stream, kernel, rows, device, shape, shared_bytes);
}

}  // namespace jaxloss::gpu
