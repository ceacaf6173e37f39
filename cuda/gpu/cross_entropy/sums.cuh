// Sums of the losses of rows, for a few rows or where nothing faster can take them: a thread or a warp a row.
#pragma once

#include "gpu/core/softmax.cuh"
#include "rows.h"

namespace jaxloss::gpu {

constexpr int kSumsThreads = 256;
constexpr int64_t kLongestRowOfThread = 16;

// Block b has part b of the sums, of the rows that its threads take, `lanes` of them (1 or 32) each, then those as many
// further on as all blocks take. A row's logits are read once, and again where a gradient is wanted.
template <class Logit>
__global__ void __launch_bounds__(kSumsThreads, 4)
    cross_entropy_sums(CrossEntropyRows<Logit, ClassIndices> rows, int lanes) {
  using Real = Accumulator<Logit>;
  const int64_t rows_a_block = kSumsThreads / lanes;
  const int lane = threadIdx.x & (lanes - 1);
  double sum = 0;
  for (int64_t row = blockIdx.x * rows_a_block + threadIdx.x / lanes; row < rows.rows;
       row += gridDim.x * rows_a_block) {
    const Real weight = rows.weight_of(row);
    const Logit* logits = rows.logits + row * rows.classes;
    const int index = rows.target.index[row];
    const bool wanted = !is_masked(weight), valid = wanted && index >= 0 && index < rows.classes;
    const Real label_logit = valid ? number(logits[index]) : Real(0);
    RunningSoftmax<Logit> running;
    if (wanted) {
      for (int64_t i = lane; i < rows.classes; i += lanes) {
        const Real x[1] = {valid && i == index ? -static_cast<Real>(INFINITY) : number(logits[i])};
        running.add(x);
      }
    }
    const LabelledSums<Real> sums(across_lanes(running.sums(), lanes, Merged()), valid, label_logit);
    if (lane == 0) {
      if (valid) sum += negative_log_likelihood(sums.log_sum, label_logit - sums.max, rows.ceiling);
      if (wanted && !valid) sum = NAN;
    }
    if (!rows.gradient) continue;
    const bool zero = !valid || weight == 0;
    const ExponentialsOf<Logit> exponentials(sums.max);
    const Real scale = exponentials.corrected(weight * sums.inverse), of_label = sums.label_derivative() * weight;
    Logit* gradient = rows.gradient + row * rows.classes;
    for (int64_t i = lane; i < rows.classes; i += lanes) {
      const Real softmax = zero ? Real(0) : exponentials.term(number(logits[i])) * scale;
      gradient[i] = stored<Logit>(!zero && i == index ? of_label : softmax);
    }
  }
  sum = across_block<kSumsThreads>(sum, Sum());
  if (threadIdx.x == 0) rows.sums[blockIdx.x] = static_cast<Real>(sum);
}

template <class Logit>
cudaError_t launch_sums(cudaStream_t stream, const CrossEntropyRows<Logit, ClassIndices>& rows) {
  if (rows.parts == 0) return cudaSuccess;
  if (rows.parts > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const int lanes = rows.classes > kLongestRowOfThread ? kWarp : 1;
  cross_entropy_sums<<<static_cast<unsigned>(rows.parts), kSumsThreads, 0, stream>>>(rows, lanes);
  return cudaGetLastError();
}

}  // namespace jaxloss::gpu
