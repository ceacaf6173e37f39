// The gradient of cross entropy where the maximum and the sum of each row are known already: one pass, no reduction.
#include "gpu/core/softmax.cuh"
#include "gpu/core/vector.cuh"
#include "gpu/launch.h"

namespace jaxloss::gpu {
namespace {

constexpr int kGradientThreads = 256;

// How many steps a thread has, all loaded together. (Of bfloat16, class indices, on an H100, as a ratio to a copy: 8
// steps 1.00, 4 steps 1.01, 2 steps 1.09, bulk copies through shared memory 1.05 – 1.12.)
template <class Logit, class Target>
constexpr int kStepsAThread = std::is_same_v<Target, ClassIndices> && sizeof(Logit) < 8 ? 8 : 4;

// So many blocks at once are enough, and leave registers for what is loaded.
template <class Logit, class Target>
constexpr int kGradientBlocks = std::is_same_v<Target, ClassIndices> && sizeof(Logit) < 8 ? 3 : 2;

// How rows are cut into chunks, and how many threads share one.
struct Chunks {
  int64_t count;
  int64_t a_row;
  int threads;  // a power of two, at most a block's
};

// Short rows are a chunk each, however short. Where a row has several, its steps are numbered from the last multiple of
// 128 bytes before the first one, so that no two chunks write to one sector of memory.
template <class Logit, class Target>
Chunks chunks_of(const CrossEntropyGradientRows<Logit, Target>& rows) {
  constexpr int64_t most = kStepsAThread<Logit, Target>;
  const int64_t steps = rows.classes / kPerVector<Logit>;
  if (steps > kGradientThreads * most) {
    const int64_t a_row = (steps + kStepsAligned - 1 + kGradientThreads * most - 1) / (kGradientThreads * most);
    return {rows.rows * a_row, a_row, kGradientThreads};
  }
  Chunks chunks{rows.rows, 1, 1};
  while (chunks.threads * most < steps) chunks.threads *= 2;
  return chunks;
}

// Chunk i is part i % chunks.a_row of row i / chunks.a_row. Logits (and probabilities) are read once, unless the row's
// weight is zero, the gradient is written once.
template <class Logit, class Target>
__global__ void __launch_bounds__(kGradientThreads, (kGradientBlocks<Logit, Target>))
    cross_entropy_gradient(CrossEntropyGradientRows<Logit, Target> rows, Chunks chunks) {
  using Real = Accumulator<Logit>;
  constexpr bool by_index = std::is_same_v<Target, ClassIndices>;
  constexpr int step = kPerVector<Logit>, most = kStepsAThread<Logit, Target>;
  const int team = threadIdx.x / chunks.threads, thread = threadIdx.x % chunks.threads;
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) * (kGradientThreads / chunks.threads) + team;
  if (chunk >= chunks.count) return;
  // Where rows have several chunks there are fewer than 2³² of them: a chunk is more than 8 KB.
  const int64_t row = chunks.a_row == 1 ? chunk : static_cast<uint32_t>(chunk) / static_cast<uint32_t>(chunks.a_row);
  const int64_t part = chunk - row * chunks.a_row, offset = row * rows.classes;
  const Logit* logits = rows.logits + offset;
  Logit* gradient = rows.gradient + offset;

  const Real weight = rows.weight_of(row), target_sum = rows.target_sum[row];
  const ExponentialsOf<Logit> exponentials(rows.max[row]);
  const Real scale = exponentials.corrected(exponential(-rows.log_sum[row])) * target_sum;
  const bool zero = weight == 0 || (by_index && target_sum == 0);

  // A thread's share: load_step(k, i) for each of its steps, of which step k begins at number i, single(i) for the
  // numbers of the edges that are its, whose loads are in flight together with those, and store_step(k, i).
  const auto go_along = [&](const Span<Logit>& span, auto load_step, auto single, auto store_step) {
    const int64_t ahead = reinterpret_cast<uintptr_t>(logits + span.head) / kVectorBytes % kStepsAligned;
    const int64_t begin = part * (chunks.threads * most) + thread - (chunks.a_row > 1 ? ahead : 0);
    const auto for_steps = [&](auto body) {
#pragma unroll
      for (int k = 0; k < most; k++) {
        const int64_t i = begin + k * chunks.threads;
        if (i >= 0 && i < span.steps) body(k, span.start_of(i));
      }
    };
    for_steps(load_step);
    const int64_t stride = chunks.a_row * chunks.threads;
    for (int64_t i = part * chunks.threads + thread; i < span.edges; i += stride) single(span.edge(i));
    for_steps(store_step);
  };

  if (zero) {
    const Real zeros[step] = {};
    go_along(
        Span<Logit>(rows.classes, gradient), [](int, int64_t) {}, [&](int64_t i) { gradient[i] = Logit{}; },
        [&](int, int64_t i) { store<Logit>(gradient + i, zeros); });
    return;
  }

  Packed<Logit, step> packed[most];
  if constexpr (by_index) {
    const int64_t index = rows.target.index[row];  // may be none here: the label is of another slice of the classes
    const Real max = rows.max[row], log_sum = rows.log_sum[row];
    const auto of_label = [&](Real x) { return exponential_minus_one((x - max) - log_sum) * weight; };
    go_along(
        Span<Logit>(rows.classes, logits, gradient),
        [&](int k, int64_t i) { packed[k] = load<step, Caching::evict_first>(logits + i); },
        [&](int64_t i) {
          const Real x = number(logits[i]);
          gradient[i] = stored<Logit>(i == index ? of_label(x) : exponentials.term(x) * (scale * weight));
        },
        [&](int k, int64_t i) {
          Real x[step], label_logit = 0;
          packed[k].numbers(x);
          const bool has_label = index >= i && index < i + step;
          if (has_label) {
#pragma unroll
            for (int j = 0; j < step; j++) label_logit = index == i + j ? x[j] : label_logit;
          }
#pragma unroll
          for (int j = 0; j < step; j++) x[j] = exponentials.term(x[j]) * (scale * weight);
          if (has_label) {
            const Real own = of_label(label_logit);
#pragma unroll
            for (int j = 0; j < step; j++) x[j] = index == i + j ? own : x[j];
          }
          store<Logit>(gradient + i, x);
        });
  } else {
    const auto* target = rows.target.probability + offset;
    using Stored = std::remove_cv_t<std::remove_pointer_t<decltype(target)>>;
    const Real of_largest = exponential_minus_one(-rows.log_sum[row]) * target_sum;
    const Real largest = sure_maximum(exponentials.max, exponential(rows.log_sum[row]));
    const auto derivative = [&](Real x, Real a) {
      const Real of_class = exponentials.term(x) * scale - a;
      return (x == largest ? of_largest + (target_sum - a) : of_class) * weight;
    };
    Packed<Stored, step> targets[most];
    go_along(
        Span<Logit>(rows.classes, logits, gradient, target),
        [&](int k, int64_t i) {
          packed[k] = load<step, Caching::evict_first>(logits + i);
          targets[k] = load<step, Caching::evict_first>(target + i);
        },
        [&](int64_t i) { gradient[i] = stored<Logit>(derivative(number(logits[i]), number(target[i]))); },
        [&](int k, int64_t i) {
          Real x[step], a[step];
          packed[k].numbers(x);
          targets[k].numbers(a);
#pragma unroll
          for (int j = 0; j < step; j++) x[j] = derivative(x[j], a[j]);
          store<Logit>(gradient + i, x);
        });
  }
}

}  // namespace

template <class Logit, class Target>
cudaError_t launch(cudaStream_t stream, const CrossEntropyGradientRows<Logit, Target>& rows) {
  if (rows.rows == 0 || rows.classes == 0) return cudaSuccess;
  const Chunks chunks = chunks_of(rows);
  const int64_t teams_a_block = kGradientThreads / chunks.threads;
  const int64_t blocks = (chunks.count + teams_a_block - 1) / teams_a_block;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;  // more than fits into the memory of any GPU
  cross_entropy_gradient<<<static_cast<unsigned>(blocks), kGradientThreads, 0, stream>>>(rows, chunks);
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
