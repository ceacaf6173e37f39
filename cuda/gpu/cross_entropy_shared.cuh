// Cross entropy of long rows on GPUs with clusters (Hopper on): a cluster of blocks holds a row in its registers.
//
// The blocks of a cluster share a row, a slice each, whose loads are all in flight at once. Each thread sums the
// softmax of what it holds, the warps of the cluster exchange their sums, and each thread forms the gradient of what it
// holds. Several clusters are on a multiprocessor, so that some load while others wait or store, and the hardware gives
// the next row to whichever is done: multiprocessors do not get equal shares of the memory's bandwidth.
//
// (Clusters that stay, take rows in turn and pass them through shared memory keep as much in flight, but are as slow
// as the slowest multiprocessor, 3 to 5 % on an H100: see benchmarks/README.md.)
#pragma once

#include "gpu/async.cuh"
#include "gpu/softmax.cuh"
#include "gpu/vector.cuh"
#include "rows.h"

namespace jaxloss::gpu {

constexpr int kHeldSteps = 8;  // by a thread
constexpr int kMostThreads = 512;
constexpr int kMostWarps = kMostThreads / kWarp;
constexpr int kMostBlocks = 16;

// A step of a warp's lanes covers whole sectors of memory.
constexpr int kStepsAligned = 128 / kVectorBytes;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// A block's slice of a row: whole steps. Steps of a row are numbered from the last multiple of 128 bytes before the
// first one. The edges are the first block's.
template <class Logit>
struct Slice {
  static constexpr int step = kPerVector<Logit>;
  int head, edges, row_steps;
  int begin, low, high;  // the slice's steps are low … high − 1, from step `begin` of the row on, which may be below 0

  __device__ __forceinline__ Slice(const Logit* row, int classes, int slice_steps) {
    const Span<Logit> span(classes, row);
    head = static_cast<int>(span.head);
    edges = static_cast<int>(span.edges);
    row_steps = static_cast<int>(span.steps);
    const int ahead = static_cast<int>(reinterpret_cast<uintptr_t>(row + head) / kVectorBytes) % kStepsAligned;
    begin = cluster_rank() * slice_steps - ahead;
    low = max(0, -begin);
    high = min(slice_steps, row_steps - begin);
  }
  // The number that a step of the slice begins at.
  __device__ __forceinline__ int start_of(int i) const { return head + (begin + i) * step; }
  // The step of the slice that a number is in, if it is in one.
  __device__ __forceinline__ int step_of(int number) const { return (number - head) / step - begin; }
  __device__ __forceinline__ bool holds(int number) const { return number >= start_of(low) && number < start_of(high); }
  __device__ __forceinline__ bool has_edge(int i) const { return begin <= 0 && i < edges; }
  __device__ __forceinline__ int edge(int i) const { return i < head ? i : i + row_steps * step; }
};

// Where the warps of a cluster tell each other their sums.
struct Exchange {
  Barrier received;
  alignas(8) SoftmaxSums<float> of_warp[kMostBlocks * kMostWarps];

  // By one thread of each block; then `cluster_arrive` and `cluster_wait` by all.
  __device__ __forceinline__ void initialize(int blocks, int warps) {
    received.initialize(blocks > 1 ? 1 : warps);
    fence_barrier_initialization();
    if (blocks > 1) received.arrive_and_expect(blocks * warps * sizeof(SoftmaxSums<float>));
  }

  // The sums of all warps, once. No block is done before it has received the sums of all others, so that nobody has to
  // wait for the last message to leave.
  __device__ __forceinline__ SoftmaxSums<float> across_cluster(SoftmaxSums<float> sums) {
    const int blocks = cluster_size(), warps = blockDim.x / kWarp;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    sums = across_lanes(sums, kWarp, Merged());
    if (blocks > 1) {
      if (lane < blocks) send(sums, of_warp[cluster_rank() * warps + warp], received, lane);
    } else if (lane == 0) {  // a block alone is no cluster: it cannot send
      of_warp[warp] = sums;
      received.arrive();
    }
    received.wait(0);
    sums = no_logits<float>();
#pragma unroll 1
    for (int i = lane; i < blocks * warps; i += kWarp) {
      const float max = fmaxf(sums.max, of_warp[i].max);
      sums.sum = sums.sum * exponential(sums.max - max) + of_warp[i].sum * exponential(of_warp[i].max - max);
      sums.max = max;
    }
    return across_lanes(sums, kWarp, Merged());
  }
};

#endif

// Cluster r has row r; its blocks share it in slices of `slice_steps` steps, at most kHeldSteps a thread. Of a row that
// is not taken out the logits are read once (that of the label twice); the gradient is written once. Logits and
// gradient must be aligned alike.
template <bool kGradient, class Logit>
__global__ void __launch_bounds__(kMostThreads, 2)
    cross_entropy_shared(CrossEntropyRows<Logit, ClassIndices> rows, int slice_steps) {
#if __CUDA_ARCH__ >= 900
  constexpr int step = kPerVector<Logit>;
  __shared__ Exchange exchange;
  if (threadIdx.x == 0) exchange.initialize(cluster_size(), blockDim.x / kWarp);
  cluster_arrive();

  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const int64_t row = blockIdx.x / cluster_size(), offset = row * rows.classes;
  const float weight = rows.weight_of(row);
  const int index = rows.target.index[row];
  const bool wanted = !taken_out(weight), valid = index >= 0 && index < rows.classes;
  const Logit* logits = rows.logits + offset;
  const Slice<Logit> slice(logits, static_cast<int>(rows.classes), slice_steps);

  // A thread has steps first, first + 32, … of the slice, and maybe an edge.
  const int first = warp * (kHeldSteps * kWarp) + lane;
  const auto for_steps = [&](auto body) {
#pragma unroll
    for (int k = 0; k < kHeldSteps; k++) {
      const int i = first + k * kWarp;
      if (i >= slice.low && i < slice.high) body(k, slice.start_of(i));
    }
  };
  const bool has_edge = slice.has_edge(thread);
  bool has_label = false;
  if (wanted && valid) {
    const int i = slice.step_of(index);
    has_label = slice.holds(index) ? i / (kHeldSteps * kWarp) == warp && i % kWarp == lane
                                   : has_edge && slice.edge(thread) == index;
  }

  Packed<Logit, step> packed[kHeldSteps];
  float edge = -INFINITY, label_logit = 0;
  SoftmaxSums<float> sums = {0, 0};
  if (wanted) {
#pragma unroll
    for (int k = 0; k < kHeldSteps; k++) packed[k] = minus_infinities<Logit>();
    for_steps([&](int k, int i) { packed[k] = load<step, Reading::once>(logits + i); });
    if (has_edge) edge = number(logits[slice.edge(thread)]);
    if (has_label) label_logit = number(logits[index]);
    sums = softmax_sums(packed, edge);
  }
  cluster_wait();
  if (wanted) sums = exchange.across_cluster(sums);

  if (wanted && valid ? has_label : thread == 0 && cluster_rank() == 0) {
    const float log_sum = wanted ? logarithm(sums.sum) : 0;
    const float nll = negative_log_likelihood(log_sum, label_logit - sums.max, rows.ceiling);
    rows.loss[row] = !wanted ? 0.0f : valid ? nll : NAN;
    if (rows.max) rows.max[row] = sums.max;
    if (rows.log_sum) rows.log_sum[row] = log_sum;
  }

  if constexpr (kGradient) {
    Logit* gradient = rows.gradient + offset;
    if (!valid || weight == 0) {
      const float zeros[step] = {};
      for_steps([&](int, int i) { store<Logit>(gradient + i, zeros); });
      if (has_edge) gradient[slice.edge(thread)] = Logit{};
      return;
    }
    const Exponentials<float> exponentials(sums.max);
    const float scale = weight / sums.sum;
    for_steps([&](int k, int i) {
      float x[step];
      packed[k].numbers(x);
#pragma unroll
      for (int j = 0; j < step; j++) x[j] = exponentials.term(x[j]) * scale;
      store<Logit>(gradient + i, x);
    });
    if (has_edge) gradient[slice.edge(thread)] = stored<Logit>(exponentials.term(edge) * scale);
    if (has_label) gradient[index] = stored<Logit>(exponentials.term(label_logit) * scale - weight);
  }
#endif
}

}  // namespace jaxloss::gpu
