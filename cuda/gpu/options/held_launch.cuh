// Which rows with options are held in shared memory, and by which threads.
#pragma once

#include "gpu/options/held.cuh"
#include "gpu/options/stats_gradient.cuh"
#include "gpu/rows/held_launch.cuh"

namespace jaxloss::gpu {

// What is made of a row.
enum class Purpose { value, value_and_gradient, stats_gradient };

template <class Kind, Purpose purpose, class Logit, class Team>
__device__ __forceinline__ void work_on_held_row(const CrossEntropyOptionRows<Logit, ClassIndices>& rows,
                                                 const RowObjective<float>& objective, int64_t row, float weight,
                                                 bool exists, const Held<Logit>& held, const Team& team) {
  if constexpr (purpose == Purpose::stats_gradient) {
    stats_gradient_of_held_row<Kind>(rows, objective, row, weight, exists, held, team);
  } else {
    constexpr bool gradient = purpose == Purpose::value_and_gradient;
    cross_entropy_of_held_row<Kind, gradient>(rows, objective, row, weight, exists, held, team);
  }
}

// Whose threads want more than 64 registers.
template <class Kind>
constexpr bool kManyNumbers = Kind::dense || Kind::detailed;

template <class Kind, Purpose purpose, class Logit>
__global__ void __launch_bounds__(kLanesThreads, kManyNumbers<Kind> ? 4 : 6)
    cross_entropy_options_in_lanes(CrossEntropyOptionRows<Logit, ClassIndices> rows, int lanes) {
  extern __shared__ uint4 slots[];
  const int64_t own = (static_cast<int64_t>(blockIdx.x) * kLanesThreads + threadIdx.x) >> (__ffs(lanes) - 1);
  const bool exists = own < rows.rows;
  const int64_t row = exists ? own : 0;
  const float weight = rows.weight_of(row);
  const bool wanted = exists && !is_masked(weight);
  const int64_t classes = wanted ? rows.classes_of(row) : 0;
  const LanesOfRow team{lanes, static_cast<int>(threadIdx.x) & (lanes - 1)};
  Held<Logit> held = held_by_lanes(rows.logits + row * rows.classes, classes, slots, lanes);
  held.load();
  const RowObjective<float> objective(rows, row);
  work_on_held_row<Kind, purpose>(rows, objective, row, weight, exists, held, team);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

__device__ __forceinline__ void send(const DenseSums& value, const DenseSums& to, const Barrier& barrier, int rank) {
  send(make_uint4(__float_as_uint(value.max), __float_as_uint(value.sum), __float_as_uint(value.target), 0), &to,
       barrier, rank);
}
__device__ __forceinline__ void send(const DetailedSums& value, const DetailedSums& to, const Barrier& barrier,
                                     int rank) {
  send(make_uint4(__float_as_uint(value.max), __float_as_uint(value.sum), __float_as_uint(value.target),
                  __float_as_uint(value.dot)),
       &to, barrier, rank);
  send(make_uint4(__float_as_uint(value.logit), static_cast<uint32_t>(value.first), static_cast<uint32_t>(value.before),
                  0),
       &to.logit, barrier, rank);
}

#endif

// The most threads of a block that holds a part of a long row, how many such blocks a multiprocessor has registers for,
// and the most vectors a thread. (By turns on an H200: four blocks of 53 KB take 4 - 7 % less than two of 104 KB where
// 64 registers are enough for a thread, and two of these up to 10 % less where they are not.)
template <class Kind>
constexpr int kHeldThreads = kManyNumbers<Kind> ? 384 : 256;
template <class Kind>
constexpr int kHeldBlocks = kManyNumbers<Kind> ? 2 : 4;
template <class Kind>
constexpr int kOptionVectors = kManyNumbers<Kind> ? 17 : 13;
constexpr int kHeldVectorsOfOneBlock = 17;  // where they spare a cluster

// Cluster r has row r; its blocks share it in slices of `slice_steps` steps.
template <class Kind, Purpose purpose, class Logit>
__global__ void __launch_bounds__(kHeldThreads<Kind>, kHeldBlocks<Kind>)
    cross_entropy_options_in_cluster(CrossEntropyOptionRows<Logit, ClassIndices> rows, int slice_steps) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ uint4 slots[];
  __shared__ Exchange<SumsOf<Kind>> exchange;
  __shared__ Exchange<float> losses;
  if (threadIdx.x == 0) {
    exchange.initialize();
    if constexpr (Kind::dense) losses.initialize();
  }
  cluster_arrive();
  const int64_t row = cluster_number();
  const float weight = rows.weight_of(row);
  const int64_t classes = is_masked(weight) ? 0 : rows.classes_of(row);
  Held<Logit> held = held_by_cluster(rows.logits + row * rows.classes, classes, slots, slice_steps);
  held.load();
  const RowObjective<float> objective(rows, row);
  work_on_held_row<Kind, purpose>(rows, objective, row, weight, true, held,
                                  ClusterOfRow<SumsOf<Kind>, float>{exchange, losses});
#endif
}

template <class Kind>
constexpr HeldLimits kOptionLimits = {kHeldThreads<Kind>, kOptionVectors<Kind>, kHeldVectorsOfOneBlock, 1};
constexpr int kLanesVectors = 16;

template <class Kind, Purpose purpose, class Logit>
cudaError_t launch_held(cudaStream_t stream, const CrossEntropyOptionRows<Logit, ClassIndices>& rows,
                        const Device& device) {
  const int64_t past = bytes_past_vector(rows.logits);
  if (rows.gradient && bytes_past_vector(rows.gradient) != past) return cudaErrorNotSupported;
  if (const LanesShape lanes = lanes_shape(rows, kLanesVectors)) {
    if (lanes.blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
    cross_entropy_options_in_lanes<Kind, purpose, Logit>
        <<<static_cast<unsigned>(lanes.blocks), kLanesThreads, lanes.shared_bytes, stream>>>(rows, lanes.lanes);
    return cudaGetLastError();
  }
  return launch_held_by_cluster(stream, cross_entropy_options_in_cluster<Kind, purpose, Logit>, rows, device,
                                kOptionLimits<Kind>);
}

// cudaErrorNotSupported of rows that no threads can hold: they are too long, there are no clusters, they are not
// aligned like their gradient, or only that is wanted.
template <class Logit>
cudaError_t launch_held(cudaStream_t stream, const CrossEntropyOptionRows<Logit, ClassIndices>& rows,
                        const Device& device) {
  if (rows.known_max) return cudaErrorNotSupported;
  const auto of_kind = [&](auto kind) {
    using Kind = decltype(kind);
    return rows.gradient ? launch_held<Kind, Purpose::value_and_gradient>(stream, rows, device)
                         : launch_held<Kind, Purpose::value>(stream, rows, device);
  };
  // What is asked for seldom shares the code of what is asked for with statistics: a release has a limit of size.
  const bool capped = rows.softcap.given(), smoothed = rows.label_smoothing.given();
  if (rows.of_lse) {
    const auto gradient = [&](auto kind) {
      return launch_held<decltype(kind), Purpose::stats_gradient>(stream, rows, device);
    };
    if (smoothed) return cudaErrorNotSupported;
    return capped ? gradient(OptionKind<true, false, true, false, false>{})
                  : gradient(OptionKind<false, false, true, false, false>{});
  }
  if (smoothed && rows.class_weights && rows.entropy) {
    return capped ? of_kind(OptionKind<true, true, true, true>{}) : of_kind(OptionKind<false, true, true, true>{});
  }
  if (smoothed && rows.class_weights) {
    return capped ? of_kind(OptionKind<true, true, false, true>{}) : of_kind(OptionKind<false, true, false, true>{});
  }
  if (capped) {
    return rows.entropy || smoothed ? of_kind(OptionKind<true, true, true>{})
                                    : of_kind(OptionKind<true, false, false>{});
  }
  if (rows.entropy) return of_kind(OptionKind<false, true, true>{});
  return smoothed ? of_kind(OptionKind<false, true, false>{}) : of_kind(OptionKind<false, false, false>{});
}

}  // namespace jaxloss::gpu
