// Sums of the losses of rows, for a few rows or where nothing faster can take them: a thread a row.
#pragma once

#include "gpu/softmax.cuh"
#include "rows.h"

namespace jaxloss::gpu {

constexpr int kSumsThreads = 256;

// Block b has part b of the sums, of rows b · threads …, then those as many further on as all blocks have threads. A
// row's logits are read once, and again where a gradient is wanted.
template <class Logit>
__global__ void __launch_bounds__(kSumsThreads) cross_entropy_sums(CrossEntropyRows<Logit, ClassIndices> rows) {
  using Real = Accumulator<Logit>;
  double sum = 0;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kSumsThreads + threadIdx.x; row < rows.rows;
       row += static_cast<int64_t>(gridDim.x) * kSumsThreads) {
    const Real weight = rows.weight_of(row);
    const Logit* logits = rows.logits + row * rows.classes;
    Logit* gradient = rows.gradient ? rows.gradient + row * rows.classes : nullptr;
    const int index = rows.target.index[row];
    const bool wanted = !taken_out(weight), valid = wanted && index >= 0 && index < rows.classes;
    const Real label_logit = valid ? number(logits[index]) : Real(0);
    RunningSoftmax<Real> running;
    if (wanted) {
      for (int64_t i = 0; i < rows.classes; i++) {
        const Real x[1] = {number(logits[i])};
        running.add(x);
      }
    }
    const SoftmaxSums<Real> sums = running.sums();
    if (valid) sum += negative_log_likelihood(logarithm(sums.sum), label_logit - sums.max, rows.ceiling);
    if (wanted && !valid) sum = NAN;
    if (!gradient) continue;
    const bool zero = !valid || weight == 0;
    const Exponentials<Real> exponentials(sums.max);
    const Real scale = weight / sums.sum;
    for (int64_t i = 0; i < rows.classes; i++) {
      const Real softmax = zero ? Real(0) : exponentials.term(number(logits[i])) * scale;
      gradient[i] = stored<Logit>(!zero && i == index ? softmax - weight : softmax);
    }
  }
  sum = across_block<kSumsThreads>(sum, Sum());
  if (threadIdx.x == 0) rows.sums[blockIdx.x] = static_cast<Real>(sum);
}

template <class Logit>
cudaError_t launch_sums(cudaStream_t stream, const CrossEntropyRows<Logit, ClassIndices>& rows) {
  if (rows.parts == 0) return cudaSuccess;
  if (rows.parts > 0x7fffffff) return cudaErrorInvalidConfiguration;
  cross_entropy_sums<<<static_cast<unsigned>(rows.parts), kSumsThreads, 0, stream>>>(rows);
  return cudaGetLastError();
}

}  // namespace jaxloss::gpu
