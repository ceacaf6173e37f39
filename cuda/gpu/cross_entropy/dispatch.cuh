// Cross entropy: which kernel takes which rows. One .cu file instantiates `launch` for each stored type of logits.
#pragma once

#include "gpu/core/device.h"
#include "gpu/core/regime.h"
#include "gpu/cross_entropy/cluster_launch.cuh"
#include "gpu/cross_entropy/registers.cuh"
#include "gpu/cross_entropy/streaming.cuh"
#include "gpu/cross_entropy/sums.cuh"
#include "gpu/cross_entropy/tiles_launch.cuh"
#include "gpu/launch.h"

namespace jaxloss::gpu {

// Clusters take both kinds of target, tiles class indices.
template <class Logit>
constexpr bool kHasClusterKernel = !std::is_same_v<Logit, double>;
template <class Logit, class Target>
constexpr bool kHasTilesKernel = std::is_same_v<Target, ClassIndices> && !std::is_same_v<Logit, double>;

// Beyond so many bytes of a row a cluster, if only of one block, takes less time than a warp. So it does of just so
// many: where memory is fast, of rows that have a gradient, else of rows that are only read. (H200: 1.02 for 1.04
// – 1.16 copies, 1.20 for 1.08 reads of 16 bits.)
constexpr int64_t kLongestRowOfWarp = 4096;
// On each multiprocessor, so that all have work where a few lanes hold each.
constexpr int64_t kFewestRowsHeld = 32;

template <class Logit, class Target>
bool long_for_a_warp(const CrossEntropyRows<Logit, Target>& rows, const Device& device) {
  const int64_t bytes = rows.classes * sizeof(Logit);
  const bool or_as_long = device.has_fast_memory() == (rows.gradient != nullptr);
  return kHasTilesKernel<Logit, Target> && (or_as_long ? bytes >= kLongestRowOfWarp : bytes > kLongestRowOfWarp);
}

// Whether rows of labels of 16 bits, and their gradient, take less time where lanes hold them in shared memory, as
// those with options: more is in flight there than registers have room for. (bf16 of 320 to 1536 classes on an
// H200: 1.18 – 1.60 copies in registers, 1.04 – 1.16 so. Few rows leave the memory idle either way, and get more lanes
// there.)
template <class Logit>
bool better_in_shared_memory(const CrossEntropyRows<Logit, ClassIndices>& rows, const Device& device) {
  const int64_t bytes = rows.classes * sizeof(Logit);
  return rows.gradient && device.has_fast_memory() && bytes >= kShortestRowHeld && bytes < kLongestRowOfWarp &&
         aligned_alike(rows) && rows.rows >= kFewestRowsHeld * device.multiprocessors;
}

template <class Logit>
CrossEntropyOptionRows<Logit, ClassIndices> as_rows_with_options(const CrossEntropyRows<Logit, ClassIndices>& rows) {
  CrossEntropyOptionRows<Logit, ClassIndices> all;
  all.rows = rows.rows, all.classes = all.smoothed_classes = rows.classes;
  all.logits = rows.logits, all.target = rows.target, all.gradient = rows.gradient;
  all.row_weight = {1, rows.row_weight, rows.rows_per_weight};
  all.ceiling = rows.ceiling;
  all.loss = rows.loss, all.max = rows.max, all.log_sum = rows.log_sum;
  return all;
}

// Longer rows that are only read are streamed: where their blocks need not wait for each other, they take less time,
// the more so where memory is fast. Few of them would leave multiprocessors idle, though.
constexpr int64_t kLongestReadByClusters = 65536, kLongestOfFastMemory = 32767;

template <class Logit, class Target>
bool good_for_clusters(const CrossEntropyRows<Logit, Target>& rows, const Device& device) {
  const bool read_twice_else = rows.gradient || !std::is_same_v<Target, ClassIndices>;
  const int64_t bytes = rows.classes * sizeof(Logit);
  const int64_t longest = device.has_fast_memory() ? kLongestOfFastMemory : kLongestReadByClusters;
  return read_twice_else || bytes <= longest || rows.rows < device.multiprocessors;
}

// Very many short rows go in tiles through shared memory, fewer or longer ones through the registers of a warp while it
// can hold one there, then of a cluster, where the GPU has clusters, one can hold a row, and it is worth it. All that
// is left is streamed by a block a row. Where memory is fast, 16-bit rows from 576 bytes on and below 4 KB go with
// those that have options.
template <class Logit, class Target>
cudaError_t launch(cudaStream_t stream, const CrossEntropyRows<Logit, Target>& rows) {
  if (rows.rows == 0 && !rows.sums) return cudaSuccess;  // an array of nothing may be null
  const Regime asked = asked_for();
  const auto may_be = [&](Regime regime) { return asked == Regime::any || asked == regime; };
  Device device;
  if (const cudaError_t error = find_current_device(device)) return error;
  if constexpr (kHasTilesKernel<Logit, Target>) {
    if (may_be(Regime::tiles)) {
      const cudaError_t error = launch_tiles(stream, rows, device, asked == Regime::any ? 4 : 0);
      if (error != cudaErrorNotSupported) return error;
    }
  }
  if constexpr (std::is_same_v<Target, ClassIndices>) {
    if (!rows.loss) return launch_sums(stream, rows);
    if constexpr (sizeof(Logit) == 2) {
      if (asked == Regime::any && better_in_shared_memory(rows, device)) {
        return launch(stream, as_rows_with_options(rows));
      }
    }
  }
  const RegistersShape registers = may_be(Regime::registers) ? registers_shape(rows) : RegistersShape{0, 0};
  if (registers.slots > 0 && !long_for_a_warp(rows, device)) return launch_registers(stream, rows, registers);
  if constexpr (kHasClusterKernel<Logit>) {
    if (asked == Regime::cluster || (asked == Regime::any && good_for_clusters(rows, device))) {
      for (const int max_cluster_size : {kMaxClusterSize, kPortableClusterSize}) {
        const ClusterShape shape = cluster_shape(rows, device, max_cluster_size);
        if (shape.blocks == 0) continue;
        const cudaError_t error = launch_cluster(stream, cluster_kernel(rows, shape.held), rows, device, shape);
        if (error != cudaErrorNotSupported) return error;
      }
    }
  }
  return registers.slots > 0 ? launch_registers(stream, rows, registers) : launch_streaming(stream, rows);
}

}  // namespace jaxloss::gpu
