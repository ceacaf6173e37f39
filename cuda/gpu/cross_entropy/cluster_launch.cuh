// How the blocks of a cluster share a row that its threads hold in registers.
#pragma once

#include "gpu/core/alignment.h"
#include "gpu/cross_entropy/cluster.cuh"
#include "gpu/cross_entropy/cluster_probabilities.cuh"
#include "gpu/rows/cluster_launch.cuh"

namespace jaxloss::gpu {

// How many steps of a row with such a target a thread holds.
template <class Logit>
constexpr int held_steps(ClassIndices) {
  return kHeldVectors;
}
template <class Logit, class Stored>
constexpr int held_steps(ClassProbabilities<Stored>) {
  return kHeldWithTarget<Logit, Stored>;
}

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

}  // namespace jaxloss::gpu
