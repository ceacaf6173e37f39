// A kernel launched on clusters of blocks, one for each row.
#pragma once

#include "gpu/core/residency.h"
#include "gpu/core/vector.cuh"

namespace jaxloss::gpu {

// The most blocks of a cluster that any GPU with clusters is sure to take.
constexpr int kPortableClusterSize = 8;

struct ClusterShape {
  int blocks;  // in a cluster; 0: the row does not fit, or the GPU has no clusters
  int threads;
  int slice_steps;
  int held;  // steps, at most, by a thread
};

// Steps of a row from the last multiple of 128 bytes before it, at most.
template <class Rows>
int64_t held_row_steps(const Rows& rows) {
  using Logit = std::remove_cv_t<std::remove_pointer_t<decltype(rows.logits)>>;
  const bool even = reinterpret_cast<uintptr_t>(rows.logits) % 128 == 0 && rows.classes * sizeof(Logit) % 128 == 0;
  return rows.classes / kPerVector<Logit> + (even ? 0 : kStepsAligned - 1);
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
