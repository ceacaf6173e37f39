// Cross entropy of long rows on GPUs with clusters (Hopper on): rows pass through shared memory.
//
// The blocks of a cluster share a row, a slice each. A slice is copied into shared memory once; its softmax is summed
// from there, its gradient formed in its place, and copied out. There are three stages for slices: one that is worked
// on, while the next one comes in and the last one goes out. One warp of a block only feeds copies, the others only
// compute.
#pragma once

#include "gpu/async.cuh"
#include "gpu/softmax.cuh"
#include "gpu/vector.cuh"
#include "rows.h"

namespace jaxloss::gpu {

constexpr int kStages = 3;
constexpr int kComputeThreads = 256;
constexpr int kComputeWarps = kComputeThreads / kWarp;
constexpr int kSharedThreads = kComputeThreads + kWarp;
constexpr int kMostBlocks = 16;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// What the threads of a block, and the blocks of a cluster, tell each other. Sums are exchanged row after row in one of
// two places in turn: none is in a row's second exchange before all have read what was sent in the first.
struct SharedState {
  Barrier filled[kStages];    // the slice has come
  Barrier finished[kStages];  // the computing warps have done with it
  Barrier received[2];        // the sums of every block of the cluster have come
  alignas(8) SoftmaxSums<float> of_warp[2][kComputeWarps];
  alignas(8) SoftmaxSums<float> of_block[2][kMostBlocks];
};

// A block's slice of a row: whole steps, in shared memory from its beginning on. The edges are the first block's.
template <class Logit>
struct Slice {
  Span<Logit> span;
  int begin, steps;

  __device__ __forceinline__ Slice(const Logit* row, int64_t classes, int slice_steps)
      : span(classes, row), begin(cluster_rank() * slice_steps) {
    steps = max(0, min(slice_steps, static_cast<int>(span.steps) - begin));
  }
  __device__ __forceinline__ int64_t first() const { return span.start_of(begin); }
  __device__ __forceinline__ uint32_t bytes() const { return steps * kVectorBytes; }
  // Where in the slice a class is, if it is.
  __device__ __forceinline__ int64_t place_of(int class_index) const { return class_index - first(); }
  __device__ __forceinline__ bool holds(int64_t place) const { return place >= 0 && place < steps * span.step; }
};

// One thread of each block: copies slices in, and where there is a gradient, out.
template <bool kGradient, class Logit>
__device__ __forceinline__ void feed(const CrossEntropyRows<Logit, ClassIndices>& rows, int slice_steps,
                                     unsigned char* stages, SharedState& state) {
  const int64_t cluster = blockIdx.x / cluster_size(), clusters = gridDim.x / cluster_size();
  const auto stage_of = [&](int count) { return stages + count % kStages * slice_steps * kVectorBytes; };
  int64_t row_to_load = cluster;
  int loaded = 0;
  const auto weight_of = [&](int64_t row) { return row < rows.rows ? rows.weight_of(row) : -0.0f; };
  float weight = weight_of(row_to_load);  // known a row ahead
  const auto load = [&] {
    if (row_to_load >= rows.rows) return;
    const Logit* row = rows.logits + row_to_load * rows.classes;
    const Slice<Logit> slice(row, rows.classes, slice_steps);
    Barrier& filled = state.filled[loaded % kStages];
    if (taken_out(weight) || slice.steps == 0) {
      filled.arrive();
    } else {
      filled.arrive_and_expect(slice.bytes());
      copy_to_shared(stage_of(loaded), row + slice.first(), slice.bytes(), filled);
    }
    loaded++;
    row_to_load += clusters;
    weight = weight_of(row_to_load);
  };

  for (int i = 0; i < kStages; i++) load();
  int done = 0;
  for (int64_t row = cluster; row < rows.rows; row += clusters, done++) {
    state.finished[done % kStages].wait(done / kStages);
    if constexpr (kGradient) {
      Logit* gradient = rows.gradient + row * rows.classes;
      const Slice<Logit> slice(gradient, rows.classes, slice_steps);
      if (slice.steps > 0) copy_to_global(gradient + slice.first(), stage_of(done), slice.bytes());
      close_copy_group();
      // The slice before this one had a row's time to go out: its stage takes the next one.
      wait_for_reads_of_copies<1>();
      if (done > 0) load();
    } else {
      load();
    }
  }
  if constexpr (kGradient) wait_for_copies();
}

// What a computing thread knows of a row before its slice has come. It is read a row ahead, so that nobody waits for
// it; of a row taken out it is read too, to no effect.
struct RowFacts {
  float weight = -0.0f;
  int index = -1;
  float edge = 0;  // the logit at an edge that is this thread's
};

// The other warps of each block: the sums of each slice, and in its place its gradient.
template <bool kGradient, class Logit>
__device__ __forceinline__ void compute(const CrossEntropyRows<Logit, ClassIndices>& rows, int slice_steps,
                                        unsigned char* stages, SharedState& state) {
  constexpr int step = kPerVector<Logit>;
  const int rank = cluster_rank(), blocks = cluster_size();
  const int64_t cluster = blockIdx.x / blocks, clusters = gridDim.x / blocks;
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const auto has_edge = [&](const Slice<Logit>& slice) { return rank == 0 && thread < slice.span.edges; };
  const auto facts_of = [&](int64_t row) {
    RowFacts facts;
    if (row >= rows.rows) return facts;
    facts.weight = rows.weight_of(row);
    facts.index = rows.target.index[row];
    const Logit* logits = rows.logits + row * rows.classes;
    const Slice<Logit> slice(logits, rows.classes, slice_steps);
    if (has_edge(slice)) facts.edge = number(logits[slice.span.edge(thread)]);
    return facts;
  };

  // Σ over the cluster. The barrier keeps a row's first gradients from being written before all its logits are read.
  int exchanges = 0;
  const auto across_cluster = [&](SoftmaxSums<float> sums) {
    const int place = exchanges % 2;
    sums = across_lanes(sums, kWarp, Merged());
    if (lane == 0) state.of_warp[place][warp] = sums;
    sync_first_threads<kComputeThreads>();
    sums = across_lanes(state.of_warp[place][lane % kComputeWarps], kComputeWarps, Merged());
    if (blocks > 1) {
      Barrier& received = state.received[place];
      if (thread < blocks) send(sums, state.of_block[place][rank], received, thread);
      received.wait(exchanges / 2);
      if (thread == 0) received.arrive_and_expect(blocks * sizeof(sums));  // for the exchange after the next
      sums = across_lanes(state.of_block[place][lane % blocks], blocks, Merged());
    }
    exchanges++;
    return sums;
  };

  RowFacts next = facts_of(cluster);
  int done = 0;
  for (int64_t row = cluster; row < rows.rows; row += clusters, done++) {
    const RowFacts facts = next;
    next = facts_of(row + clusters);
    const int64_t offset = row * rows.classes;
    const Slice<Logit> slice(rows.logits + offset, rows.classes, slice_steps);
    const int stage = done % kStages;
    Logit* x = reinterpret_cast<Logit*>(stages + stage * slice_steps * kVectorBytes);
    const bool wanted = !taken_out(facts.weight);
    const bool valid = facts.index >= 0 && facts.index < rows.classes;
    SoftmaxSums<float> sums = no_logits<float>();
    state.filled[stage].wait(done / kStages);

    if (wanted) {
      RunningSoftmax<float> running;
      if (has_edge(slice)) {
        const float edge[1] = {facts.edge};
        running.add(edge);
      }
      for_batches<4>(thread, slice.steps, kComputeThreads, [&](auto batch, int i) {
        float logits[batch * step];
#pragma unroll
        for (int k = 0; k < batch; k++) {
          load<step, Reading::again>(x + (i + k * kComputeThreads) * step).numbers(logits + k * step);
        }
        running.add(logits);
      });
      // The block that has the label's logit writes the loss; the first one, where it is at an edge or nowhere.
      const int64_t place = slice.place_of(facts.index), in_steps = facts.index - slice.span.head;
      const bool in_a_slice = valid && in_steps >= 0 && in_steps < slice.span.steps * step;
      const bool writes = thread == 0 && (in_a_slice ? slice.holds(place) : rank == 0);
      float label_logit = 0;
      if (writes && valid) label_logit = number(in_a_slice ? x[place] : rows.logits[offset + facts.index]);
      sums = across_cluster(running.sums());
      if (writes) {
        const float log_sum = logarithm(sums.sum);
        const float nll = negative_log_likelihood(log_sum, label_logit - sums.max, rows.ceiling);
        rows.loss[row] = valid ? nll : NAN;
        if (rows.max) rows.max[row] = sums.max;
        if (rows.log_sum) rows.log_sum[row] = log_sum;
      }
    } else if (thread == 0 && rank == 0) {
      rows.loss[row] = 0;
      if (rows.max) rows.max[row] = 0;
      if (rows.log_sum) rows.log_sum[row] = 0;
    }

    if constexpr (kGradient) {
      const bool zero = !valid || facts.weight == 0;
      const Exponentials<float> exponentials(sums.max);
      const float scale = facts.weight / sums.sum;
      if (has_edge(slice)) {
        const int64_t i = slice.span.edge(thread);
        const float softmax = exponentials.term(facts.edge) * scale;
        rows.gradient[offset + i] = stored<Logit>(zero ? 0.0f : i == facts.index ? softmax - facts.weight : softmax);
      }
      const int64_t label_place = slice.place_of(facts.index);
      const int label = slice.holds(label_place) ? static_cast<int>(label_place) : -1;
      for_batches<2>(thread, slice.steps, kComputeThreads, [&](auto batch, int i) {
        Packed<Logit, step> packed[batch];
#pragma unroll
        for (int k = 0; k < batch; k++) packed[k] = load<step, Reading::again>(x + (i + k * kComputeThreads) * step);
#pragma unroll
        for (int k = 0; k < batch; k++) {
          const int first = (i + k * kComputeThreads) * step;
          float values[step] = {};
          if (!zero) {
            packed[k].numbers(values);
#pragma unroll
            for (int j = 0; j < step; j++) values[j] = exponentials.term(values[j]) * scale;
            if (label >= first && label < first + step) {
#pragma unroll
              for (int j = 0; j < step; j++) values[j] -= label == first + j ? facts.weight : 0.0f;
            }
          }
          store_shared<Logit>(x + first, values);
        }
      });
      fence_before_copy();
    }
    __syncwarp();
    if (lane == 0) state.finished[stage].arrive();
  }
}

#endif

// A cluster takes every clusters-th row; blocks share it in slices of up to `slice_steps` steps, a stage each in
// dynamic shared memory. A row's logits are read once, its gradient is written once. Logits and gradient must be
// aligned alike.
template <bool kGradient, class Logit>
__global__ void __launch_bounds__(kSharedThreads)
    cross_entropy_shared(CrossEntropyRows<Logit, ClassIndices> rows, int slice_steps) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char stages[];
  __shared__ SharedState state;
  if (threadIdx.x == 0) {
    for (Barrier& barrier : state.filled) barrier.initialize(1);
    for (Barrier& barrier : state.finished) barrier.initialize(kComputeWarps);
    for (Barrier& barrier : state.received) barrier.initialize(1);
    fence_barrier_initialization();
    for (Barrier& barrier : state.received) barrier.arrive_and_expect(cluster_size() * sizeof(SoftmaxSums<float>));
  }
  __syncthreads();
  cluster_sync();
  if (threadIdx.x < kComputeThreads) {
    compute<kGradient>(rows, slice_steps, stages, state);
  } else if (threadIdx.x == kComputeThreads) {
    feed<kGradient>(rows, slice_steps, stages, state);
  }
  cluster_sync();  // a block's shared memory is there until the last message to it has come
#endif
}

}  // namespace jaxloss::gpu
