// The gradient of cross entropy where the maximum and the sum of each row are known already: one pass, no reduction.
#include "gpu/launch.h"
#include "gpu/softmax.cuh"
#include "gpu/vector.cuh"

namespace jaxloss::gpu {
namespace {

constexpr int kGradientThreads = 256;
constexpr int kStepsAThread = 4;

// Of which so many are loaded together.
template <class Logit, class Target>
constexpr int kBatch = sizeof(Logit) == 8                     ? 1
                       : std::is_same_v<Target, ClassIndices> ? 4
                                                              : 2;

// How rows are cut into chunks, and how many threads share one.
struct Chunks {
  int64_t a_row;
  int64_t size;  // in classes
  int threads;   // a power of two, at most a block's
};

// Short rows are a chunk each, however short.
template <class Logit>
Chunks chunks_of(int64_t classes) {
  constexpr int64_t step = kPerVector<Logit>, most = kGradientThreads * kStepsAThread * step;
  Chunks chunks{(classes + most - 1) / most, most, 1};
  while (chunks.threads < kGradientThreads && chunks.threads * kStepsAThread * step < classes) chunks.threads *= 2;
  return chunks;
}

// Piece i of rows × chunks is chunk i % chunks.a_row of row i / chunks.a_row; each `chunks.threads` threads take one
// after the other. Logits (and probabilities) are read once, unless the row's weight is zero, the gradient is written
// once.
template <class Logit, class Target>
__global__ void __launch_bounds__(kGradientThreads, 2)
    cross_entropy_gradient(CrossEntropyGradientRows<Logit, Target> rows, Chunks chunks) {
  using Real = Accumulator<Logit>;
  constexpr bool by_index = std::is_same_v<Target, ClassIndices>;
  constexpr int step = kPerVector<Logit>;
  const int teams_a_block = kGradientThreads / chunks.threads;
  const int team = threadIdx.x / chunks.threads, thread = threadIdx.x % chunks.threads;
  const int64_t teams = static_cast<int64_t>(gridDim.x) * teams_a_block;
  for (int64_t piece = static_cast<int64_t>(blockIdx.x) * teams_a_block + team; piece < rows.rows * chunks.a_row;
       piece += teams) {
    const int64_t row = piece / chunks.a_row, begin = (piece - row * chunks.a_row) * chunks.size;
    const int64_t count = min(chunks.size, rows.classes - begin), offset = row * rows.classes + begin;
    const Logit* logits = rows.logits + offset;
    Logit* gradient = rows.gradient + offset;
    const auto for_steps = [&](const Span<Logit>& span, auto single, auto steps) {
      for (int64_t i = thread; i < span.edges; i += chunks.threads) single(span.edge(i));
      for_batches<kBatch<Logit, Target>, int64_t>(thread, span.steps, chunks.threads,
                                                  [&](auto batch, int64_t i) { steps(batch, span.start_of(i)); });
    };
    const int64_t stride = static_cast<int64_t>(chunks.threads) * step;

    const Real weight = rows.weight_of(row);
    const Real target_sum = weight == 0 ? Real(0) : rows.target_sum[row];
    if (weight == 0 || (by_index && target_sum == 0)) {
      const Real zeros[step] = {};
      for_steps(
          Span<Logit>(count, gradient), [&](int64_t i) { gradient[i] = Logit{}; },
          [&](auto batch, int64_t i) {
#pragma unroll
            for (int k = 0; k < batch; k++) store<Logit>(gradient + i + k * stride, zeros);
          });
      continue;
    }
    const Exponentials<Real> exponentials(rows.max[row]);
    const Real scale = exponential(-rows.log_sum[row]) * target_sum;

    if constexpr (by_index) {
      const int64_t index =
          rows.target.index[row] - begin;  // may be in no chunk: the label is of another slice of the classes
      for_steps(
          Span<Logit>(count, logits, gradient),
          [&](int64_t i) {
            const Real softmax = exponentials.term(number(logits[i])) * scale;
            gradient[i] = stored<Logit>((i == index ? softmax - 1 : softmax) * weight);
          },
          [&](auto batch, int64_t i) {
            Packed<Logit, step> packed[batch];
#pragma unroll
            for (int k = 0; k < batch; k++) packed[k] = load<step, Reading::once>(logits + i + k * stride);
#pragma unroll
            for (int k = 0; k < batch; k++) {
              const int64_t first = i + k * stride;
              Real x[step];
              packed[k].numbers(x);
#pragma unroll
              for (int j = 0; j < step; j++) x[j] = exponentials.term(x[j]) * (scale * weight);
              if (index >= first && index < first + step) {
#pragma unroll
                for (int j = 0; j < step; j++) x[j] -= index == first + j ? weight : Real(0);
              }
              store<Logit>(gradient + first, x);
            }
          });
    } else {
      const auto* target = rows.target.probability + offset;
      using Stored = std::remove_cv_t<std::remove_pointer_t<decltype(target)>>;
      for_steps(
          Span<Logit>(count, logits, gradient, target),
          [&](int64_t i) {
            const Real softmax = exponentials.term(number(logits[i])) * scale;
            gradient[i] = stored<Logit>((softmax - number(target[i])) * weight);
          },
          [&](auto batch, int64_t i) {
            Packed<Logit, step> packed[batch];
            Packed<Stored, step> targets[batch];
#pragma unroll
            for (int k = 0; k < batch; k++) {
              packed[k] = load<step, Reading::once>(logits + i + k * stride);
              targets[k] = load<step, Reading::once>(target + i + k * stride);
            }
#pragma unroll
            for (int k = 0; k < batch; k++) {
              Real x[step], a[step];
              packed[k].numbers(x);
              targets[k].numbers(a);
#pragma unroll
              for (int j = 0; j < step; j++) x[j] = (exponentials.term(x[j]) * scale - a[j]) * weight;
              store<Logit>(gradient + i + k * stride, x);
            }
          });
    }
  }
}

}  // namespace

template <class Logit, class Target>
cudaError_t launch(cudaStream_t stream, const CrossEntropyGradientRows<Logit, Target>& rows) {
  if (rows.rows == 0 || rows.classes == 0) return cudaSuccess;
  const Chunks chunks = chunks_of<Logit>(rows.classes);
  const int64_t teams_a_block = kGradientThreads / chunks.threads;
  const int64_t blocks = (rows.rows * chunks.a_row + teams_a_block - 1) / teams_a_block;
  cross_entropy_gradient<<<static_cast<unsigned>(blocks < 0x7fffffff ? blocks : 0x7fffffff), kGradientThreads, 0,
                           stream>>>(rows, chunks);
  return cudaGetLastError();
}

template cudaError_t launch(cudaStream_t, const CrossEntropyGradientRows<float, ClassIndices>&);
template cudaError_t launch(cudaStream_t, const CrossEntropyGradientRows<bfloat16, ClassIndices>&);
template cudaError_t launch(cudaStream_t, const CrossEntropyGradientRows<float16, ClassIndices>&);
template cudaError_t launch(cudaStream_t, const CrossEntropyGradientRows<double, ClassIndices>&);
template cudaError_t launch(cudaStream_t, const CrossEntropyGradientRows<float, ClassProbabilities<float>>&);
template cudaError_t launch(cudaStream_t, const CrossEntropyGradientRows<bfloat16, ClassProbabilities<bfloat16>>&);
template cudaError_t launch(cudaStream_t, const CrossEntropyGradientRows<float16, ClassProbabilities<float16>>&);
template cudaError_t launch(cudaStream_t, const CrossEntropyGradientRows<double, ClassProbabilities<double>>&);
template cudaError_t launch(cudaStream_t, const CrossEntropyGradientRows<bfloat16, ClassProbabilities<float>>&);
template cudaError_t launch(cudaStream_t, const CrossEntropyGradientRows<float16, ClassProbabilities<float>>&);

}  // namespace jaxloss::gpu
