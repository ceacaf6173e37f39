// Which kernel takes which rows of logits.
#include <algorithm>
#include <tuple>
#include <type_traits>

#include "gpu/cross_entropy_registers.cuh"
#include "gpu/cross_entropy_streaming.cuh"
#include "gpu/launch.h"

namespace jaxloss::gpu {
namespace {

unsigned blocks(int64_t wanted) { return static_cast<unsigned>(std::min<int64_t>(wanted, INT32_MAX)); }

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

bool target_aligns(ClassIndices, int64_t, int) { return true; }
template <class Stored>
bool target_aligns(ClassProbabilities<Stored> target, int64_t classes, int step) {
  return rows_align(target.probability, classes, step);
}

// Calls `body` with how many consecutive classes a thread takes at once: a whole vector where every row begins at one.
template <class Rows, class Body>
void for_step_width(const Rows& rows, Body body) {
  constexpr int kVector = kVectorBytes / sizeof(*rows.logits);
  if (rows_align(rows.logits, rows.classes, kVector) && target_aligns(rows.target, rows.classes, kVector) &&
      (!rows.gradient || rows_align(rows.gradient, rows.classes, kVector))) {
    body(Constant<kVector>{});
  } else {
    body(Constant<1>{});
  }
}

template <int kLanes, int kSteps, int kWidth, class Logit, class Target>
void in_registers(cudaStream_t stream, const CrossEntropyRows<Logit, Target>& rows) {
  constexpr int kRows = kRegisterThreads / kLanes;
  const unsigned grid = blocks((rows.rows + kRows - 1) / kRows);
  if (rows.gradient) {
    rows_in_registers<kLanes, kSteps, kWidth, true><<<grid, kRegisterThreads, 0, stream>>>(rows);
  } else {
    rows_in_registers<kLanes, kSteps, kWidth, false><<<grid, kRegisterThreads, 0, stream>>>(rows);
  }
}

// Few lanes for few classes, so that no lane is idle; at most 32 registers of logits a lane.
template <int kWidth, class Logit, class Target>
void by_length(cudaStream_t stream, const CrossEntropyRows<Logit, Target>& rows) {
  const int64_t steps = (rows.classes + kWidth - 1) / kWidth;
  constexpr int kMost = kWidth == 1 ? 16 : 8;
  if (steps <= 4) {
    in_registers<1, 4, kWidth>(stream, rows);
  } else if (steps <= 4 * kMost) {
    in_registers<4, kMost, kWidth>(stream, rows);
  } else if (steps <= 32 * kMost) {
    in_registers<32, kMost, kWidth>(stream, rows);
  } else if (rows.gradient) {
    rows_streamed<kWidth, true><<<blocks(rows.rows), kStreamingThreads, 0, stream>>>(rows);
  } else {
    rows_streamed<kWidth, false><<<blocks(rows.rows), kStreamingThreads, 0, stream>>>(rows);
  }
}

}  // namespace

template <class Logit, class Target>
cudaError_t launch(cudaStream_t stream, const CrossEntropyRows<Logit, Target>& rows) {
  if (rows.rows == 0) return cudaSuccess;
  for_step_width(rows, [&](auto width) { by_length<decltype(width)::value>(stream, rows); });
  return cudaGetLastError();
}

template <class Logit, class Target>
cudaError_t launch(cudaStream_t stream, const CrossEntropyGradientRows<Logit, Target>& rows) {
  if (rows.rows == 0) return cudaSuccess;
  for_step_width(rows, [&](auto width) {
    gradient_streamed<decltype(width)::value><<<blocks(rows.rows), kStreamingThreads, 0, stream>>>(rows);
  });
  return cudaGetLastError();
}

namespace {

template <class... Rows>
auto instantiated(List<Rows...>) {
  return std::make_tuple(static_cast<cudaError_t (*)(cudaStream_t, const Rows&)>(&launch)...);
}

[[gnu::used]] const auto instances =
    instantiated(Concatenate<CrossEntropyTasks, CrossEntropyGradientTasks>::type{});

}  // namespace

}  // namespace jaxloss::gpu
