// Which rows of divergences are held in shared memory, and by which threads.
#pragma once

#include "gpu/divergence/held.cuh"
#include "gpu/rows/held_launch.cuh"

namespace jaxloss::gpu {

template <class Divergence, class Logit>
using RowsOfLogits = DivergenceRows<Divergence, Logit, TeacherLogits<Logit>>;

// The vectors of a row that a lane holds, of the student's and of the teacher's each.
constexpr int kDivergenceLanesVectors = 8;

// How many blocks are to fit on a multiprocessor: as many as leave enough registers for nothing to spill. What the
// compiler makes for GPUs before Hopper takes a register more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
template <class Divergence, class Logit>
constexpr int kHeldByLanesBlocks = std::is_same_v<Divergence, JensenShannon> && sizeof(Logit) == 2 ? 5 : 6;
#else
template <class Divergence, class Logit>
constexpr int kHeldByLanesBlocks = 6;
#endif

template <class Divergence, class Logit>
__global__ void __launch_bounds__(kLanesThreads, kHeldByLanesBlocks<Divergence, Logit>)
    divergence_held_by_lanes(RowsOfLogits<Divergence, Logit> rows, int lanes) {
  extern __shared__ uint4 slots[];
  const int64_t own = (static_cast<int64_t>(blockIdx.x) * kLanesThreads + threadIdx.x) >> (__ffs(lanes) - 1);
  const bool exists = own < rows.rows;
  const int64_t row = exists ? own : 0, offset = row * rows.classes;
  const float weight = rows.row_weight.of(row);
  const int64_t classes = exists && !is_masked(weight) ? rows.classes : 0;
  const int held = static_cast<int>((rows.classes / kPerVector<Logit> + lanes - 1) / lanes);
  Held<Logit> student = held_by_lanes(rows.logits + offset, classes, slots, lanes);
  Held<Logit> teacher = held_by_lanes(rows.teacher.logits + offset, classes, slots + held * kLanesThreads, lanes);
  student.load();
  teacher.load();
  const LanesOfRow team{lanes, static_cast<int>(threadIdx.x) & (lanes - 1)};
  divergence_of_held_row(rows, row, weight, exists, student, teacher, team);
}

constexpr HeldLimits kDivergenceLimits = {256, 9, 12, 2};
constexpr int kDivergenceBlocks = 3;  // on a multiprocessor

// Cluster r has row r; its blocks share it in slices of `slice_steps` steps.
template <class Divergence, class Logit>
__global__ void __launch_bounds__(kDivergenceLimits.threads, kDivergenceBlocks)
    divergence_held_by_cluster(RowsOfLogits<Divergence, Logit> rows, int slice_steps) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ uint4 slots[];
  __shared__ Exchange<TemperedPair> exchange;
  __shared__ Exchange<DivergenceSums> sums;
  if (threadIdx.x == 0) {
    exchange.initialize();
    sums.initialize();
  }
  cluster_arrive();
  const int64_t row = cluster_number(), offset = row * rows.classes;
  const float weight = rows.row_weight.of(row);
  const int64_t classes = is_masked(weight) ? 0 : rows.classes;
  const int threads = static_cast<int>(blockDim.x), held = (slice_steps + threads - 1) / threads;
  Held<Logit> student = held_by_cluster(rows.logits + offset, classes, slots, slice_steps);
  Held<Logit> teacher = held_by_cluster(rows.teacher.logits + offset, classes, slots + held * threads, slice_steps);
  student.load();
  teacher.load();
  divergence_of_held_row(rows, row, weight, true, student, teacher,
                         ClusterOfRow<TemperedPair, DivergenceSums>{exchange, sums});
#endif
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

__device__ __forceinline__ void send(const TemperedPair& value, const TemperedPair& to, const Barrier& barrier,
                                     int rank) {
  const auto bits = [](float x) { return __float_as_uint(x); };
  const TemperedPart &student = value.student, &teacher = value.teacher;
  send(make_uint4(bits(student.max), bits(student.others), bits(student.largest), bits(teacher.max)), &to, barrier,
       rank);
  send(make_uint4(bits(teacher.others), bits(teacher.largest), 0, 0), &to.teacher.others, barrier, rank);
}
__device__ __forceinline__ void send(const DivergenceSums& value, const DivergenceSums& to, const Barrier& barrier,
                                     int rank) {
  send(make_float2(value.loss, value.total), &to, barrier, rank);
}

#endif

// cudaErrorNotSupported of rows that are read more than once: those that are too long, or whose student, teacher and
// gradient are not aligned alike; where there are no clusters; and where a cluster is slower than a block that reads
// them again, mostly out of the caches. That is so of 16 bits (by 3 - 6 % on an H200, for what is not a step of a row
// is much of the work then) and of a value alone (by 6 - 12 %).
template <class Divergence, class Logit>
cudaError_t launch_held(cudaStream_t stream, const RowsOfLogits<Divergence, Logit>& rows) {
  const int64_t past = bytes_past_vector(rows.logits);
  if (bytes_past_vector(rows.teacher.logits) != past) return cudaErrorNotSupported;
  if (rows.gradient && bytes_past_vector(rows.gradient) != past) return cudaErrorNotSupported;
  if (const LanesShape lanes = lanes_shape(rows, kDivergenceLanesVectors)) {
    if (lanes.blocks > 0x7fffffff) return cudaErrorNotSupported;
    divergence_held_by_lanes<Divergence, Logit>
        <<<static_cast<unsigned>(lanes.blocks), kLanesThreads, 2 * lanes.shared_bytes, stream>>>(rows, lanes.lanes);
    return cudaGetLastError();
  }
  if constexpr (sizeof(Logit) == 2) {
    return cudaErrorNotSupported;
  } else {
    if (!rows.gradient) return cudaErrorNotSupported;
    Device device;
    if (const cudaError_t error = find_current_device(device)) return error;
    return launch_held_by_cluster(stream, divergence_held_by_cluster<Divergence, Logit>, rows, device,
                                  kDivergenceLimits);
  }
}

}  // namespace jaxloss::gpu
