// The value of cross entropy, without a gradient, of long rows on Hopper and later: every warp streams chunks of rows
// through shared memory.
//
// The warps of a team share a row, chunk by chunk; the copy engine brings the next chunks, and those of the next row,
// while one is summed, so that reading never waits for the end of a row.
#pragma once

#include <algorithm>

#include "gpu/async.cuh"
#include "gpu/residency.h"
#include "gpu/softmax.cuh"
#include "gpu/vector.cuh"
#include "rows.h"

namespace jaxloss::gpu {

constexpr int kValueWarps = 8;
constexpr int kValueThreads = kValueWarps * kWarp;
constexpr int kChunkSteps = 256;  // vectors
constexpr int kChunkStages = 3;
constexpr size_t kValueSharedBytes = static_cast<size_t>(kValueWarps) * kChunkStages * kChunkSteps * kVectorBytes;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// What a warp found in its chunks of a row.
struct FoundByWarp {
  SoftmaxSums<float> sums;
  float label_logit;  // 0 if it is elsewhere
};

struct ValueState {
  Barrier filled[kValueWarps][kChunkStages];
  FoundByWarp part[2][kValueWarps];  // of rows in turn
};

// A chunk of a row of this warp's, and the one after it.
template <class Logit>
struct ChunkCursor {
  const CrossEntropyRows<Logit, ClassIndices>& rows;
  int64_t row, row_stride;
  int first, chunk, stride;
  Span<Logit> span;

  __device__ __forceinline__ ChunkCursor(const CrossEntropyRows<Logit, ClassIndices>& rows_, int64_t row_,
                                         int64_t row_stride_, int member, int members)
      : rows(rows_),
        row(row_),
        row_stride(row_stride_),
        first(member),
        chunk(member),
        stride(members),
        span(0, rows_.logits) {
    to_row();
  }
  __device__ __forceinline__ bool exists() const { return row < rows.rows; }
  __device__ __forceinline__ int steps() const {
    return static_cast<int>(
        min(static_cast<int64_t>(kChunkSteps), span.steps - static_cast<int64_t>(chunk) * kChunkSteps));
  }
  __device__ __forceinline__ bool in_row() const { return static_cast<int64_t>(chunk) * kChunkSteps < span.steps; }
  // The number of the row that the chunk begins with.
  __device__ __forceinline__ int64_t start() const { return span.start_of(static_cast<int64_t>(chunk) * kChunkSteps); }
  __device__ __forceinline__ void to_next() {
    chunk += stride;
    if (!in_row()) {
      row += row_stride;
      to_row();
    }
  }

 private:
  // The first row, from this one on, that has a chunk for this warp.
  __device__ __forceinline__ void to_row() {
    for (; exists(); row += row_stride) {
      if (taken_out(rows.weight_of(row))) continue;
      span = Span<Logit>(rows.classes, rows.logits + row * rows.classes);
      chunk = first;
      if (in_row()) return;
    }
  }
};

#endif

// Team t of all teams takes rows t, t + teams, … Of a row that is not taken out, the logits are read once.
template <int members, class Logit>
__global__ void __launch_bounds__(kValueThreads, 2) cross_entropy_value(CrossEntropyRows<Logit, ClassIndices> rows) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char chunks[];
  __shared__ ValueState state;
  constexpr int step = kPerVector<Logit>, teams_a_block = kValueWarps / members;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, member = warp % members;
  const int64_t team = blockIdx.x + static_cast<int64_t>(warp / members) * gridDim.x;
  const int64_t teams = static_cast<int64_t>(gridDim.x) * teams_a_block;
  unsigned char* own = chunks + warp * kChunkStages * kChunkSteps * kVectorBytes;
  Barrier* filled = state.filled[warp];
  if (lane == 0) {
    for (int i = 0; i < kChunkStages; i++) filled[i].initialize(1);
    fence_barrier_initialization();
  }
  __syncwarp();

  ChunkCursor<Logit> ahead(rows, team, teams, member, members);
  int fetched = 0, worked_on = 0;
  const auto fetch = [&] {  // by one lane
    if (!ahead.exists()) return;
    const uint32_t bytes = ahead.steps() * kVectorBytes;
    const int stage = fetched++ % kChunkStages;
    filled[stage].arrive_and_expect(bytes);
    copy_to_shared(own + stage * kChunkSteps * kVectorBytes, rows.logits + ahead.row * rows.classes + ahead.start(),
                   bytes, filled[stage]);
    ahead.to_next();
  };
  if (lane == 0) {
    for (int i = 0; i < kChunkStages; i++) fetch();
  }

  int place = 0;
  float next_weight = team < rows.rows ? rows.weight_of(team) : -0.0f;
  int next_index = team < rows.rows ? rows.target.index[team] : -1;
  for (int64_t row = team; row < rows.rows; row += teams) {
    const float weight = next_weight;
    const int index = next_index;
    if (row + teams < rows.rows) {  // read a row ahead, so that nobody waits for it
      next_weight = rows.weight_of(row + teams);
      next_index = rows.target.index[row + teams];
    }
    if (taken_out(weight)) {
      if (member == 0 && lane == 0) rows.store_results(row, 0, 0, 0);
      continue;
    }
    const Logit* logits = rows.logits + row * rows.classes;
    const Span<Logit> span(rows.classes, logits);
    const bool has_edge = member == 0 && lane < span.edges;
    const float edge = has_edge ? number(logits[span.edge(lane)]) : 0.0f;
    float label_logit = 0;
    RunningSoftmax<float> running;
    for (int64_t begin = static_cast<int64_t>(member) * kChunkSteps; begin < span.steps;
         begin += static_cast<int64_t>(members) * kChunkSteps) {
      const int steps = static_cast<int>(min(static_cast<int64_t>(kChunkSteps), span.steps - begin));
      const int stage = worked_on % kChunkStages;
      const Logit* x = reinterpret_cast<const Logit*>(own + stage * kChunkSteps * kVectorBytes);
      filled[stage].wait(worked_on / kChunkStages);
      worked_on++;
      for_batches<4>(lane, steps, kWarp, [&](auto batch, int i) {
        float values[batch * step];
#pragma unroll
        for (int k = 0; k < batch; k++) {
          load<step, Reading::again>(x + (i + k * kWarp) * step).numbers(values + k * step);
        }
        running.add(values);
      });
      const int64_t label = index - span.start_of(begin);
      if (lane == 0 && label >= 0 && label < steps * step) label_logit = number(x[label]);
      __syncwarp();
      if (lane == 0) fetch();
    }
    if (has_edge) {
      const float values[1] = {edge};
      running.add(values);
      if (span.edge(lane) == index) label_logit = edge;
    }
    SoftmaxSums<float> sums = across_lanes(running.sums(), kWarp, Merged());
    label_logit = across_lanes(label_logit, kWarp, Sum());
    if constexpr (members > 1) {
      if (lane == 0) state.part[place][warp] = {sums, label_logit};
      sync_team<members * kWarp>(1 + warp / members);
      if (member == 0) {
        const FoundByWarp part = state.part[place][warp + lane % members];
        sums = across_lanes(part.sums, members, Merged());
        label_logit = across_lanes(part.label_logit, members, Sum());
      }
      place = 1 - place;
    }
    if (member == 0 && lane == 0) {
      const float log_sum = logarithm(sums.sum);
      const bool valid = index >= 0 && index < rows.classes;
      const float nll = negative_log_likelihood(log_sum, label_logit - sums.max, rows.ceiling);
      rows.store_results(row, valid ? nll : NAN, sums.max, log_sum);
    }
  }
#endif
}

constexpr int64_t kShortestStreamedRow = 8192, kLongestStreamedRow = 65536;  // bytes

// cudaErrorNotSupported where the device has no such kernel, or where another one has more threads at work on rows that
// are few, or takes less time for each because they are long.
template <class Logit>
cudaError_t launch_value(cudaStream_t stream, const CrossEntropyRows<Logit, ClassIndices>& rows, const Device& device,
                         bool whatever_rows) {
  const int64_t row_bytes = rows.classes * sizeof(Logit);
  const bool one = row_bytes <= kShortestStreamedRow * 2, two = row_bytes <= kShortestStreamedRow * 4;
  const int members = one ? 1 : two ? 2 : 4;
  const auto kernel = one   ? cross_entropy_value<1, Logit>
                      : two ? cross_entropy_value<2, Logit>
                            : cross_entropy_value<4, Logit>;
  const int64_t resident =
      resident_blocks(reinterpret_cast<const void*>(kernel), device, kValueThreads, kValueSharedBytes);
  const int64_t blocks = (rows.rows * members + kValueWarps - 1) / kValueWarps;
  if (resident == 0) return cudaErrorNotSupported;
  if (!whatever_rows &&
      (row_bytes <= kShortestStreamedRow || row_bytes > kLongestStreamedRow || blocks < 4 * resident)) {
    return cudaErrorNotSupported;
  }
  kernel<<<static_cast<unsigned>(std::min(blocks, resident * kWaves)), kValueThreads, kValueSharedBytes, stream>>>(
      rows);
  return cudaGetLastError();
}

}  // namespace jaxloss::gpu
