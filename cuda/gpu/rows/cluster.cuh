// Rows in the registers of clusters (Hopper on): which thread holds what of a row, and how the warps of a cluster tell
// each other what they summed.
//
// Each thread loads all that it holds of a row at once. Several clusters are on a multiprocessor, so that some load
// while others wait or store, and the hardware gives the next row to whichever is done: multiprocessors do not get
// equal shares of the memory's bandwidth. (Clusters that stayed, took rows in turn and passed them through shared
// memory kept as much in flight, but were as slow as the slowest multiprocessor: see benchmarks/README.md.)
#pragma once

#include "gpu/core/async.cuh"
#include "gpu/core/softmax.cuh"
#include "gpu/core/vector.cuh"
#include "rows.h"

namespace jaxloss::gpu {

// With 64 registers a thread, 1024 of them are on a multiprocessor: 128 KB of rows in flight if each holds 8 vectors.
// With 128 registers it is 512 of them, and 192 KB if each holds 24: for rows so long that blocks have threads enough.
constexpr int kHeldVectors = 8, kHeldVectorsOfLongRows = 24;
template <int held>
constexpr int kMostThreads = held == kHeldVectors ? 512 : 256;
constexpr int kBlocksAMultiprocessor = 2;  // of so many threads
constexpr int kMaxClusterSize = 16;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// What a thread holds of a row: up to `held` steps of its block's slice, and maybe one number of the edges, which are
// all the first block's.
template <class Logit, int held>
class Share {
 public:
  __device__ __forceinline__ Share(const Logit* row, int classes, int slice_steps) {
    const Span<Logit> span(classes, row);
    head_ = static_cast<int>(span.head);
    steps_ = static_cast<int>(span.steps);
    // Slices begin at multiples of 128 bytes: a row's steps are numbered from the last multiple of 128 bytes before the
    // first one.
    const int ahead = static_cast<int>(reinterpret_cast<uintptr_t>(row + head_) / kVectorBytes % kStepsAligned);
    const int begin = cluster_rank() * slice_steps - ahead;
    end_ = min(begin + slice_steps, steps_);
    first_ = begin + static_cast<int>(threadIdx.x) / kWarp * (held * kWarp) + static_cast<int>(threadIdx.x) % kWarp;
    has_edge = cluster_rank() == 0 && threadIdx.x < span.edges;
    edge = static_cast<int>(span.edge(threadIdx.x));
  }

  bool has_edge;
  int edge;

  // body(k, i): the k-th step that this thread may hold is there, and begins at number i.
  template <class Body>
  __device__ __forceinline__ void for_steps(Body body) const {
#pragma unroll
    for (int k = 0; k < held; k++) {
      const int i = first_ + k * kWarp;
      if (i >= 0 && i < end_) body(k, head_ + i * step);
    }
  }
  // Of a number that this thread holds in a step: which of its steps that is, and where in it the number is. −1 for the
  // number of the edges.
  __device__ __forceinline__ int step_of(int number) const {
    const int i = (number - head_) / step;
    return number < head_ || i >= steps_ ? -1 : (i - first_) / kWarp;
  }
  __device__ __forceinline__ int place_of(int number) const { return (number - head_) % step; }
  __device__ __forceinline__ bool holds(int number) const {
    const int i = (number - head_) / step;
    if (number < head_ || i >= steps_) return has_edge && edge == number;
    return i >= first_ && i < end_ && (i - first_) % kWarp == 0 && i - first_ < held * kWarp;
  }

 private:
  static constexpr int step = kPerVector<Logit>;
  int head_, steps_, first_, end_;
};

// Where the warps of a cluster send what they summed, once: to every block, or to the first one.
template <class Sums>
struct Exchange {
  Barrier received;
  alignas(16) Sums of_warp[kMaxClusterSize * kMostThreads<kHeldVectors> / kWarp];

  // By one thread of each block; then `cluster_arrive` and `cluster_wait` by all.
  __device__ __forceinline__ void initialize() {
    const int warps = blockDim.x / kWarp, blocks = cluster_size();
    received.initialize(blocks > 1 ? 1 : warps);
    fence_barrier_initialization();
    if (blocks > 1) received.arrive_and_expect(blocks * warps * sizeof(Sums));
  }

  // By all lanes of each warp: its sums, to the first blocks.
  __device__ __forceinline__ void publish(const Sums& sums, int receivers) {
    const int warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    if (cluster_size() > 1) {
      if (lane < receivers) send(sums, of_warp[cluster_rank() * warps + warp], received, lane);
    } else if (lane == 0) {  // a block alone is no cluster: it cannot send
      of_warp[warp] = sums;
      received.arrive();
    }
  }

  // What all warps have sent, for each lane of a warp, once it is there. A block is not done before: it would take the
  // memory that is sent to with it.
  template <class Combine>
  __device__ __forceinline__ Sums all(Sums none, Combine combine) {
    received.wait(0);
    const int count = cluster_size() * (blockDim.x / kWarp);
    Sums sums = none;
#pragma unroll 1
    for (int i = threadIdx.x % kWarp; i < count; i += kWarp) sums = combine(sums, of_warp[i]);
    return across_lanes(sums, kWarp, combine);
  }
};

#endif

}  // namespace jaxloss::gpu
