// How the blocks of a cluster share a row.
#pragma once

#include "gpu/alignment.h"
#include "gpu/cross_entropy_cluster.cuh"
#include "gpu/cross_entropy_cluster_probabilities.cuh"
#include "gpu/residency.h"

namespace jaxloss::gpu {

struct ClusterShape {
  int blocks;  // in a cluster; 0: the row does not fit, or the GPU has no clusters
  int threads;
  int slice_steps;
  int held;  // steps, at most, by a thread
};

// How many steps of a row with such a target a thread holds.
template <class Logit>
constexpr int held_steps(ClassIndices) {
  return kHeldVectors;
}
template <class Logit, class Stored>
constexpr int held_steps(ClassProbabilities<Stored>) {
  return kHeldWithTarget<Logit, Stored>;
}

// The most blocks of a cluster that any GPU with clusters is sure to take.
constexpr int kPortableClusterSize = 8;

// A row of `steps` in blocks whose threads hold `held` each, of which a multiprocessor has room for `threads`: a
// quarter or half of them in a block.
struct Cut {
  int64_t steps;
  int held, threads;

  int64_t fewest(int share) const {
    return steps == 0 ? 1 : quotient_rounded_up(steps, static_cast<int64_t>(threads / share) * held);
  }
  int64_t slice(int64_t blocks) const {
    return quotient_rounded_up(quotient_rounded_up(steps, blocks), kStepsAligned) * kStepsAligned;
  }
  int64_t warps(int64_t blocks) const {
    const int64_t some = quotient_rounded_up(slice(blocks), held * kWarp);
    return some < 1 ? 1 : some;
  }
  // What a multiprocessor has of rows at once, in steps.
  int64_t in_flight(int64_t blocks) const { return threads / kWarp / warps(blocks) * slice(blocks); }
  // From `blocks` on: more of them only where a tenth more is in flight.
  int64_t good(int64_t blocks) const {
    for (int64_t more = blocks + 1; more <= kPortableClusterSize; more++) {
      if (in_flight(more) * 10 > in_flight(blocks) * 11) blocks = more;
    }
    return blocks;
  }
  ClusterShape shape(int64_t blocks) const {
    return {static_cast<int>(blocks), static_cast<int>(warps(blocks)) * kWarp, static_cast<int>(slice(blocks)), held};
  }
};

// Steps of a row from the last multiple of 128 bytes before it, at most.
template <class Rows>
int64_t held_row_steps(const Rows& rows) {
  using Logit = std::remove_cv_t<std::remove_pointer_t<decltype(rows.logits)>>;
  const bool even = reinterpret_cast<uintptr_t>(rows.logits) % 128 == 0 && rows.classes * sizeof(Logit) % 128 == 0;
  return rows.classes / kPerVector<Logit> + (even ? 0 : kStepsAligned - 1);
}

// Blocks of up to 256 threads, as few as hold the row; of up to 512, where those would be more than `max_cluster_size`.
// More blocks, where there are fewer rows than would keep all multiprocessors at work, or where more of a row that one
// block does not hold would be in flight. Threads that hold more, where even more is in flight then.
template <class Logit, class Target>
ClusterShape cluster_shape(const CrossEntropyRows<Logit, Target>& rows, const Device& device,
                           int64_t max_cluster_size = kMaxClusterSize) {
  if (device.compute_capability < kHopper || !aligned_alike(rows)) return {};
  const int64_t steps = held_row_steps(rows);
  const Cut cut = {steps, held_steps<Logit>(Target{}), kMostThreads<kHeldVectors> * kBlocksAMultiprocessor};
  int64_t blocks = cut.fewest(4);
  if (blocks > max_cluster_size) blocks = cut.fewest(2);
  if (blocks > 1) blocks = cut.good(blocks);
  if constexpr (std::is_same_v<Target, ClassIndices>) {
    const Cut longer = {steps, kHeldVectorsOfLongRows, kMostThreads<kHeldVectorsOfLongRows> * kBlocksAMultiprocessor};
    const int64_t few = longer.good(longer.fewest(2));
    const bool many_rows = rows.rows * few > 2 * device.multiprocessors;
    if (rows.gradient && blocks > 1 && few <= max_cluster_size && many_rows &&
        (blocks > max_cluster_size || longer.in_flight(few) > cut.in_flight(blocks))) {
      return rows.rows > 0x7fffffff / few ? ClusterShape{} : longer.shape(few);
    }
  }
  if (blocks > max_cluster_size) return {};
  while (blocks * 2 <= kPortableClusterSize && rows.rows * blocks * 2 <= device.multiprocessors &&
         steps / blocks > 1024) {
    blocks *= 2;
  }
  return rows.rows > 0x7fffffff / blocks ? ClusterShape{} : cut.shape(blocks);
}

template <class Logit>
auto cluster_kernel(const CrossEntropyRows<Logit, ClassIndices>& rows, int held) {
  if (held == kHeldVectorsOfLongRows) return cross_entropy_cluster<true, kHeldVectorsOfLongRows, Logit>;
  return rows.gradient ? cross_entropy_cluster<true, kHeldVectors, Logit>
                       : cross_entropy_cluster<false, kHeldVectors, Logit>;
}
template <class Logit, class Stored>
auto cluster_kernel(const CrossEntropyRows<Logit, ClassProbabilities<Stored>>& rows, int) {
  return rows.gradient ? cross_entropy_cluster_probabilities<true, Logit, Stored>
                       : cross_entropy_cluster_probabilities<false, Logit, Stored>;
}

// cudaErrorNotSupported where no cluster of that shape can run.
template <class Rows>
cudaError_t launch_cluster(cudaStream_t stream, void (*kernel)(Rows, int), const Rows& rows, const Device& device,
                           const ClusterShape& shape, int shared_bytes = 0) {
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(shape.blocks), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(rows.rows * shape.blocks));
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  if (resident_clusters(reinterpret_cast<const void*>(kernel), device, shape.blocks, config) == 0) {
    return cudaErrorNotSupported;
  }
  if (shape.blocks == 1) config.numAttrs = 0;
  return cudaLaunchKernelEx(&config, kernel, rows, shape.slice_steps);
}

}  // namespace jaxloss::gpu
