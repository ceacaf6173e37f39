// Which rows with options are held in shared memory, and by which threads.
#pragma once

#include <algorithm>

#include "gpu/cross_entropy_cluster_launch.cuh"
#include "gpu/cross_entropy_held.cuh"
#include "gpu/cross_entropy_registers.cuh"

namespace jaxloss::gpu {

// Some lanes of a warp, which hold a row.
struct LanesOfRow {
  static constexpr Caching caching = Caching::evict_first;
  int lanes, own;

  template <class Sums>
  __device__ __forceinline__ Sums merged(const Sums& sums, MergedScores, bool) const {
    return sums;
  }
  __device__ __forceinline__ float sum_of_losses(float loss, bool) const { return loss; }
  __device__ __forceinline__ int lane() const { return own; }
  __device__ __forceinline__ bool leads() const { return own == 0; }
  __device__ __forceinline__ RowTeam threads() const { return {lanes, own}; }
};

constexpr int kLanesThreads = 128;

template <class Kind, bool kGradient, class Logit>
__global__ void __launch_bounds__(kLanesThreads, Kind::dense ? 4 : 6)
    cross_entropy_options_in_lanes(CrossEntropyOptionRows<Logit, ClassIndices> rows, int lanes) {
  extern __shared__ uint4 slots[];
  const int64_t own = (static_cast<int64_t>(blockIdx.x) * kLanesThreads + threadIdx.x) >> (__ffs(lanes) - 1);
  const bool exists = own < rows.rows;
  const int64_t row = exists ? own : 0;
  const float weight = rows.weight_of(row);
  const bool wanted = exists && !is_masked(weight);
  const RowObjective<float> objective(rows, row);
  const int64_t classes = wanted ? objective.classes : 0;
  const LanesOfRow team{lanes, static_cast<int>(threadIdx.x) & (lanes - 1)};
  const Logit* logits = rows.logits + row * rows.classes;
  const Span<Logit> span(classes, logits);
  const int steps = static_cast<int>(span.steps);
  Held<Logit> held{logits,
                   slots + threadIdx.x,
                   static_cast<int>(span.head),
                   steps,
                   static_cast<int>(span.edges),
                   team.own,
                   steps,
                   lanes,
                   team.own,
                   lanes};
  held.load();
  cross_entropy_of_held_row<Kind, kGradient, Logit>(rows, objective, row, weight, exists, held, team);
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

// A cluster, which holds a row.
template <class Kind>
struct ClusterOfRow {
  static constexpr Caching caching = Caching::normal;
  static constexpr int lanes = kWarp;
  Exchange<SumsOf<Kind>>& exchange;
  Exchange<float>& losses;

  __device__ __forceinline__ SumsOf<Kind> merged(const SumsOf<Kind>& sums, MergedScores merge, bool wanted) const {
    cluster_wait();
    if (!wanted) return sums;
    exchange.publish(sums, cluster_size());
    return exchange.all(no_scores<SumsOf<Kind>>(), merge);
  }
  // For the warp that leads.
  __device__ __forceinline__ float sum_of_losses(float loss, bool wanted) const {
    if (!wanted) return 0;
    losses.publish(loss, 1);
    return cluster_rank() == 0 && threadIdx.x < kWarp ? losses.all(0.0f, Sum()) : 0.0f;
  }
  __device__ __forceinline__ int lane() const { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ __forceinline__ bool leads() const { return cluster_rank() == 0 && threadIdx.x == 0; }
  __device__ __forceinline__ RowTeam threads() const {
    const int count = static_cast<int>(blockDim.x);
    return {cluster_size() * count, cluster_rank() * count + static_cast<int>(threadIdx.x)};
  }
};

#endif

// The most threads of a block that holds a part of a long row, how many such blocks a multiprocessor has registers for,
// and the most vectors a thread. (By turns on an H200: four blocks of 53 KB take 4 - 7 % less than two of 104 KB where
// 64 registers are enough for a thread, and two of these up to 10 % less where they are not.)
template <class Kind>
constexpr int kHeldThreads = Kind::dense ? 384 : 256;
template <class Kind>
constexpr int kHeldBlocks = Kind::dense ? 2 : 4;
template <class Kind>
constexpr int kOptionVectors = Kind::dense ? 17 : 13;
constexpr int kHeldVectorsOfOneBlock = 17;  // where they spare a cluster

// Cluster r has row r; its blocks share it in slices of `slice_steps` steps.
template <class Kind, bool kGradient, class Logit>
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
  const int64_t row = blockIdx.x / cluster_size();
  const float weight = rows.weight_of(row);
  const RowObjective<float> objective(rows, row);
  const int64_t classes = is_masked(weight) ? 0 : objective.classes;
  const Logit* logits = rows.logits + row * rows.classes;
  const Span<Logit> span(classes, logits);
  // Slices begin at multiples of 128 bytes: a row's steps are numbered from the last one before the first step.
  const int ahead = static_cast<int>(reinterpret_cast<uintptr_t>(logits + span.head) / kVectorBytes % kStepsAligned);
  const int begin = cluster_rank() * slice_steps - ahead, threads = static_cast<int>(blockDim.x);
  const int own = begin + static_cast<int>(threadIdx.x), steps = static_cast<int>(span.steps);
  Held<Logit> held{logits,
                   slots + threadIdx.x,
                   static_cast<int>(span.head),
                   steps,
                   cluster_rank() == 0 ? static_cast<int>(span.edges) : 0,
                   own < 0 ? own + threads : own,
                   min(begin + slice_steps, steps),
                   threads,
                   static_cast<int>(threadIdx.x),
                   threads};
  held.load();
  cross_entropy_of_held_row<Kind, kGradient, Logit>(rows, objective, row, weight, true, held,
                                                    ClusterOfRow<Kind>{exchange, losses});
#endif
}

template <class Logit>
using OptionsKernel = void (*)(CrossEntropyOptionRows<Logit, ClassIndices>, int);

// Rows of up to so many bytes are held by a warp, so many vectors a lane, and longer ones by a cluster.
constexpr int kLanesVectors = 16;
constexpr int64_t kLongestRowInLanes = kLanesVectors * kWarp * kVectorBytes;

// How a cluster holds a row of `steps` in shared memory.
template <class Kind>
ClusterShape held_shape(int64_t steps, const Device& device) {
  constexpr int64_t threads = kHeldThreads<Kind>, bytes_beside = 12288;
  const int64_t room = (device.shared_memory_limit - bytes_beside) / (threads * kVectorBytes);
  const bool one_block = steps <= threads * kHeldVectorsOfOneBlock;
  const int64_t vectors = std::min<int64_t>(room, one_block ? kHeldVectorsOfOneBlock : kOptionVectors<Kind>);
  const int64_t blocks = std::max<int64_t>(1, quotient_rounded_up(steps, threads * vectors));
  const int64_t slice = quotient_rounded_up(quotient_rounded_up(steps, blocks), kStepsAligned) * kStepsAligned;
  const int64_t warps = std::max<int64_t>(1, quotient_rounded_up(slice, vectors * kWarp));
  const int64_t own_threads = std::min(warps * kWarp, threads);
  return {static_cast<int>(blocks), static_cast<int>(own_threads), static_cast<int>(slice),
          static_cast<int>(quotient_rounded_up(slice, own_threads))};
}

template <class Kind, bool kGradient, class Logit>
cudaError_t launch_held(cudaStream_t stream, const CrossEntropyOptionRows<Logit, ClassIndices>& rows,
                        const Device& device) {
  constexpr int step = kPerVector<Logit>;
  const int64_t past = bytes_past_vector(rows.logits);
  if (kGradient && bytes_past_vector(rows.gradient) != past) return cudaErrorNotSupported;
  if (rows.classes * static_cast<int64_t>(sizeof(Logit)) <= kLongestRowInLanes) {
    const bool edges = past != 0 || rows.classes % step != 0;
    const int64_t steps = rows.classes / step;
    int lanes = edges ? kLeastLanesWithEdges : 1;
    while (lanes < kWarp && lanes * kLanesVectors < steps) lanes *= 2;
    const int64_t blocks = quotient_rounded_up(rows.rows, kLanesThreads / lanes);
    if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
    const int64_t shared_bytes = quotient_rounded_up(steps, lanes) * kLanesThreads * kVectorBytes;
    cross_entropy_options_in_lanes<Kind, kGradient, Logit>
        <<<static_cast<unsigned>(blocks), kLanesThreads, shared_bytes, stream>>>(rows, lanes);
    return cudaGetLastError();
  }
  if (device.compute_capability < kHopper) return cudaErrorNotSupported;
  const ClusterShape shape = held_shape<Kind>(held_row_steps(rows), device);
  if (shape.blocks > kMaxClusterSize || rows.rows > 0x7fffffff / shape.blocks) return cudaErrorNotSupported;
  const OptionsKernel<Logit> kernel = cross_entropy_options_in_cluster<Kind, kGradient, Logit>;
  const int shared_bytes = shape.held * shape.threads * kVectorBytes;
  if (resident_blocks(reinterpret_cast<const void*>(kernel), device, shape.threads, shared_bytes) == 0) {
    return cudaErrorNotSupported;
  }
  return launch_cluster(stream, kernel, rows, device, shape, shared_bytes);
}

// cudaErrorNotSupported of rows that no threads can hold: they are too long, there are no clusters, they are not
// aligned like their gradient, or only that is wanted.
template <class Logit>
cudaError_t launch_held(cudaStream_t stream, const CrossEntropyOptionRows<Logit, ClassIndices>& rows) {
  if (rows.known_max) return cudaErrorNotSupported;
  Device device;
  if (const cudaError_t error = find_current_device(device)) return error;
  const auto of_kind = [&](auto kind) {
    using Kind = decltype(kind);
    return rows.gradient ? launch_held<Kind, true>(stream, rows, device)
                         : launch_held<Kind, false>(stream, rows, device);
  };
  // What is asked for seldom shares the code of what is asked for with statistics: a release has a limit of size.
  const bool capped = rows.softcap.given(), smoothed = rows.label_smoothing.given();
  if (smoothed && rows.class_weights) {
    return capped ? of_kind(OptionKind<true, true, true, true>{}) : of_kind(OptionKind<false, true, true, true>{});
  }
  if (capped) {
    return rows.entropy || smoothed ? of_kind(OptionKind<true, true, true>{})
                                    : of_kind(OptionKind<true, false, false>{});
  }
  if (rows.entropy) return of_kind(OptionKind<false, true, true>{});
  return smoothed ? of_kind(OptionKind<false, true, false>{}) : of_kind(OptionKind<false, false, false>{});
}

}  // namespace jaxloss::gpu
