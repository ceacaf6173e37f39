// How the blocks of a cluster share a row.
#pragma once

#include "gpu/cross_entropy_cluster.cuh"
#include "gpu/cross_entropy_cluster_probabilities.cuh"
#include "gpu/residency.h"

namespace jaxloss::gpu {

struct ClusterShape {
  int blocks;  // in a cluster; 0: the row does not fit, or the GPU has no clusters
  int threads;
  int slice_steps;
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

// Whether the target's numbers beside a step of logits are whole vectors, given the first logit that begins a step.
inline bool steps_are_aligned(ClassIndices, int64_t) { return true; }
template <class Stored>
bool steps_are_aligned(ClassProbabilities<Stored> target, int64_t first) {
  return reinterpret_cast<uintptr_t>(target.probability + first) % kVectorBytes == 0;
}

// Blocks of up to 256 threads, as few as hold the row; of up to 512, where a cluster would be larger than any GPU with
// clusters is sure to take. More blocks, where there are fewer rows than would keep all multiprocessors at work.
template <class Logit, class Target>
ClusterShape cluster_shape(const CrossEntropyRows<Logit, Target>& rows, const Device& device) {
  constexpr int few_threads = 256, sure_blocks = 8, held = held_steps<Logit>(Target{});
  if (device.compute_capability < kHopper) return {};
  const auto ahead = [](const void* pointer, int64_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes; };
  const int64_t misaligned = ahead(rows.logits, kVectorBytes);
  if (rows.gradient && static_cast<int64_t>(ahead(rows.gradient, kVectorBytes)) != misaligned) return {};
  const int64_t head = misaligned == 0 ? 0 : (kVectorBytes - misaligned) / static_cast<int64_t>(sizeof(Logit));
  if (!steps_are_aligned(rows.target, head)) return {};
  const bool even = ahead(rows.logits, 128) == 0 && rows.classes * static_cast<int64_t>(sizeof(Logit)) % 128 == 0;
  const int64_t steps = rows.classes / kPerVector<Logit> + (even ? 0 : kStepsAligned - 1);
  const auto blocks_of = [&](int64_t threads) {
    return steps == 0 ? 1 : (steps + threads * held - 1) / (threads * held);
  };
  int64_t blocks = blocks_of(few_threads);
  if (blocks > sure_blocks) blocks = blocks_of(kMostThreads);
  if (blocks > kMostBlocks) return {};
  while (blocks * 2 <= sure_blocks && rows.rows * blocks * 2 <= device.multiprocessors && steps / blocks > 1024) {
    blocks *= 2;
  }
  if (rows.rows > 0x7fffffff / blocks) return {};
  const int64_t slice_steps = ((steps + blocks - 1) / blocks + kStepsAligned - 1) / kStepsAligned * kStepsAligned;
  const int64_t warps = (slice_steps + held * kWarp - 1) / (held * kWarp);
  return {static_cast<int>(blocks), static_cast<int>(warps < 1 ? 1 : warps) * kWarp, static_cast<int>(slice_steps)};
}

template <class Logit>
auto cluster_kernel(const CrossEntropyRows<Logit, ClassIndices>& rows) {
  return rows.gradient ? cross_entropy_cluster<true, Logit> : cross_entropy_cluster<false, Logit>;
}
template <class Logit, class Stored>
auto cluster_kernel(const CrossEntropyRows<Logit, ClassProbabilities<Stored>>& rows) {
  return rows.gradient ? cross_entropy_cluster_probabilities<true, Logit, Stored>
                       : cross_entropy_cluster_probabilities<false, Logit, Stored>;
}

// cudaErrorNotSupported where no cluster of that shape can run.
template <class Logit, class Target>
cudaError_t launch_cluster(cudaStream_t stream, const CrossEntropyRows<Logit, Target>& rows, const Device& device,
                           const ClusterShape& shape) {
  const auto kernel = cluster_kernel(rows);
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(shape.blocks), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(rows.rows * shape.blocks));
  config.blockDim = dim3(shape.threads);
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
