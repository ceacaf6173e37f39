// Cross entropy of rows of any length, on any GPU: a block a row, which it reads twice.
#pragma once

#include "gpu/core/softmax.cuh"
#include "gpu/core/vector.cuh"
#include "rows.h"

namespace jaxloss::gpu {

// Of a block: fewer for shorter rows, so that more of them are at work.
constexpr int kStreamingThreads = 512, kStreamingThreadsOfShortRows = 256;
constexpr int64_t kLongestShortRow = 65536;  // bytes

// Blocks on a multiprocessor, at least.
template <bool kGradient, int threads, class Real>
constexpr int kStreamingBlocks =
    (kGradient || sizeof(Real) == 8 || threads == kStreamingThreads ? 1024 : 1536) / threads;

// How many steps a thread has in flight: registers limit them.
template <bool kGradient, int threads, class Logit>
constexpr int kStreamedSteps = sizeof(Logit) == 8                                                 ? 1
                               : sizeof(Logit) == 2 && !kGradient && threads == kStreamingThreads ? 6
                                                                                                  : 4;

// A second pass goes backwards: what the first one read last may be cached still.
enum class Direction { forwards, backwards };

// A block goes along a row in rounds, of one step a thread; this many numbers.
template <int threads, class Logit>
constexpr int kRound = threads * kPerVector<Logit>;

// A thread's share of a row: single(i) for each number of the edges that is its, steps(Count<n>, i) for n steps, the
// first of which begins at number i, each other a round later. At most `most` steps together: registers limit it.
template <int block, Direction direction, int most, class Logit, class Single, class Steps>
__device__ __forceinline__ void along_row(const Span<Logit>& span, Single single, Steps steps) {
  constexpr int64_t threads = block;
  const int64_t thread = threadIdx.x;
  for (int64_t i = thread; i < span.edges; i += threads) single(span.edge(i));
  if constexpr (direction == Direction::forwards) {
    for_batches<most>(thread, span.steps, threads, [&](auto batch, int64_t i) { steps(batch, span.start_of(i)); });
  } else {
    const int64_t rounds = (span.steps + threads - 1) / threads, last = (rounds - 1) * threads;
    const int64_t begin = last + thread < span.steps ? 0 : threads;  // the last round may have no step for this thread
    for_batches<most>(begin, rounds * threads, threads, [&](auto batch, int64_t i) {
      steps(batch, span.start_of(last - i - (batch - 1) * threads + thread));
    });
  }
}

template <int threads, Caching caching, class Logit, int batch, class Stored>
__device__ __forceinline__ void load_steps(const Stored* from, Packed<Stored, kPerVector<Logit>> (&packed)[batch]) {
#pragma unroll
  for (int k = 0; k < batch; k++) packed[k] = load<kPerVector<Logit>, caching>(from + k * kRound<threads, Logit>);
}

template <int threads, class Logit>
__device__ __forceinline__ void store_zeros(const Span<Logit>& span, Logit* row) {
  const Accumulator<Logit> zeros[kPerVector<Logit>] = {};
  along_row<threads, Direction::forwards, 1>(
      span, [&](int64_t i) { row[i] = Logit{}; },
      [&](auto batch, int64_t i) {
#pragma unroll
        for (int k = 0; k < batch; k++) store<Logit>(row + i + k * kRound<threads, Logit>, zeros);
      });
}

template <class Rows, class Real>
__device__ __forceinline__ void store_results(const Rows& rows, int64_t row, Real loss, Real max, Real log_sum) {
  if (threadIdx.x == 0) rows.store_results(row, loss, max, log_sum);
}

// Block b takes rows b, b + gridDim.x, … It reads the logits, of a row that is not masked, once, and again where a
// gradient is wanted, which is written once. No thread waits for a single number before its first steps are on their
// way: for that of the edges it is given one of (more only where the gradient is not aligned like the logits), nor for
// the label's.
template <bool kGradient, int threads, class Logit>
__global__ void __launch_bounds__(threads, (kStreamingBlocks<kGradient, threads, Accumulator<Logit>>))
    cross_entropy_streaming(CrossEntropyRows<Logit, ClassIndices> rows) {
  using Real = Accumulator<Logit>;
  constexpr int step = kPerVector<Logit>, most = kStreamedSteps<kGradient, threads, Logit>;
  for (int64_t row = blockIdx.x; row < rows.rows; row += gridDim.x) {
    const Logit* logits = rows.logits + row * rows.classes;
    Logit* gradient = kGradient ? rows.gradient + row * rows.classes : nullptr;
    const Span<Logit> span(rows.classes, logits, kGradient ? gradient : logits);
    const Real weight = rows.weight_of(row);
    if (is_masked(weight)) {
      store_results(rows, row, Real(0), Real(0), Real(0));
      if (kGradient) store_zeros<threads>(span, gradient);
      continue;
    }
    const int index = rows.target.index[row];
    const bool valid = index >= 0 && index < rows.classes;
    const bool has_edge = threadIdx.x < span.edges;
    const Real edge = has_edge ? number(logits[span.edge(threadIdx.x)]) : -static_cast<Real>(INFINITY);
    Real label_logit = 0;
    bool wants_label = valid;
    const auto load_label = [&] {
      if (wants_label) label_logit = number(logits[index]);
      wants_label = false;
    };

    RunningSoftmax<Logit> running;
    for_halving_batches<most, int64_t>(threadIdx.x, span.steps, threads, [&](auto batch, int64_t i) {
      Packed<Logit, step> packed[batch];
      load_steps<threads, kGradient ? Caching::normal : Caching::evict_first, Logit>(logits + span.start_of(i), packed);
      load_label();
#pragma unroll
      for (int k = 0; k < batch; k++) {
        const int64_t j = index - span.start_of(i) - k * kRound<threads, Logit>;
        if (static_cast<uint64_t>(j) < step) leave_out(packed[k], static_cast<int>(j));
      }
      running.add(packed);
    });
    load_label();
    for (int64_t i = threadIdx.x; i < span.edges; i += threads) {
      const bool is_label = span.edge(i) == index;
      const Real x[1] = {is_label ? -static_cast<Real>(INFINITY) : i < threads ? edge : number(logits[span.edge(i)])};
      running.add(x);
    }
    const LabelledSums<Real> sums(across_block<threads>(running.sums(), Merged()), valid, label_logit);
    const Real nll = negative_log_likelihood(sums.log_sum, label_logit - sums.max, rows.ceiling);
    store_results(rows, row, valid ? nll : static_cast<Real>(NAN), sums.max, sums.log_sum);

    if constexpr (kGradient) {
      if (!valid || weight == 0) {
        store_zeros<threads>(span, gradient);
        continue;
      }
      const ExponentialsOf<Logit> exponentials(sums.max);
      const Real scale = exponentials.corrected(weight * sums.inverse), of_label = sums.label_derivative() * weight;
      along_row<threads, Direction::backwards, most>(
          span,
          [&](int64_t i) {
            const bool first = i == span.edge(threadIdx.x);
            const Real softmax = exponentials.term(first ? edge : number(logits[i])) * scale;
            gradient[i] = stored<Logit>(i == index ? of_label : softmax);
          },
          [&](auto batch, int64_t i) {
            Packed<Logit, step> packed[batch];
            load_steps<threads, Caching::evict_first, Logit>(logits + i, packed);
#pragma unroll
            for (int k = 0; k < batch; k++) {
              const int64_t first = i + k * kRound<threads, Logit>;
              Real x[step];
              packed[k].numbers(x);
#pragma unroll
              for (int j = 0; j < step; j++) x[j] = exponentials.term(x[j]) * scale;
              if (index >= first && index < first + step) {
#pragma unroll
                for (int j = 0; j < step; j++) x[j] = index == first + j ? of_label : x[j];
              }
              store<Logit>(gradient + first, x);
            }
          });
    }
  }
}

// The same with probabilities. They are read once, and where a gradient is wanted, which needs their sum first, twice.
template <class Logit, class Stored>
__global__ void __launch_bounds__(kStreamingThreads, sizeof(Logit) == 8 ? 1 : 0)
    cross_entropy_streaming(CrossEntropyRows<Logit, ClassProbabilities<Stored>> rows) {
  using Real = Accumulator<Logit>;
  constexpr int threads = kStreamingThreads, step = kPerVector<Logit>, most = sizeof(Real) == 8 ? 1 : 2;
  for (int64_t row = blockIdx.x; row < rows.rows; row += gridDim.x) {
    const Logit* logits = rows.logits + row * rows.classes;
    const Stored* target = rows.target.probability + row * rows.classes;
    Logit* gradient = rows.gradient ? rows.gradient + row * rows.classes : nullptr;
    const Span<Logit> span(rows.classes, logits, gradient ? gradient : logits, target);
    const Real weight = rows.weight_of(row);
    if (is_masked(weight)) {
      store_results(rows, row, Real(0), Real(0), Real(0));
      if (gradient) store_zeros<threads>(span, gradient);
      continue;
    }

    RunningSoftmax<Real> running;  // not of Logit: `is_sure` and `rest` need the largest's term to be just 1
    CompensatedSum<Real> target_sums;
    along_row<threads, Direction::forwards, most>(
        span,
        [&](int64_t i) {
          const Real x[1] = {number(logits[i])};
          running.add(x);
          if (gradient) target_sums.add(number(target[i]));
        },
        [&](auto batch, int64_t i) {
          Packed<Logit, step> packed[batch];
          load_steps<threads, Caching::normal, Logit>(logits + i, packed);
          if (gradient) {
            Packed<Stored, step> targets[batch];
            load_steps<threads, Caching::normal, Logit>(target + i, targets);
#pragma unroll
            for (int k = 0; k < batch; k++) {
              Real a[step], sum = 0;
              targets[k].numbers(a);
#pragma unroll
              for (int j = 0; j < step; j++) sum += a[j];
              target_sums.add(sum);
            }
          }
          Real x[batch * step];
#pragma unroll
          for (int k = 0; k < batch; k++) packed[k].numbers(x + k * step);
          running.add(x);
        });
    const SoftmaxSums<Real> sums = across_block<threads>(running.sums(), Merged());
    const Real target_sum = gradient ? across_block<threads>(target_sums.value(), Sum()) : Real(0);
    const Exponentials<Real> exponentials(sums.max);
    Real rest = sums.sum - 1;
    if (is_sure(sums.sum)) {
      CompensatedSum<Real> others;
      along_row<threads, Direction::backwards, most>(
          span, [&](int64_t i) { others.add(exponentials.term_of_others(number(logits[i]))); },
          [&](auto batch, int64_t i) {
            Packed<Logit, step> packed[batch];
            load_steps<threads, Caching::normal, Logit>(logits + i, packed);
#pragma unroll
            for (int k = 0; k < batch; k++) {
              Real x[step], sum = 0;
              packed[k].numbers(x);
#pragma unroll
              for (int j = 0; j < step; j++) sum += exponentials.term_of_others(x[j]);
              others.add(sum);
            }
          });
      rest = across_block<threads>(others.value(), Sum());
    }
    const Real log_sum = log_of_sum(sums.sum, rest, is_sure(sums.sum));
    const Real scale = target_sum / sums.sum, of_rest = rest * scale, largest = sure_maximum(sums.max, sums.sum);
    const auto nll = [&](Real x) { return negative_log_likelihood(log_sum, x - sums.max, rows.ceiling); };
    const auto derivative = [&](Real x, Real a) {
      const Real of_class = exponentials.term(x) * scale - a;
      return weight == 0 ? Real(0) : (x == largest ? (target_sum - a) - of_rest : of_class) * weight;
    };
    CompensatedSum<Real> loss;
    along_row<threads, Direction::backwards, most>(
        span,
        [&](int64_t i) {
          const Real x = number(logits[i]), a = number(target[i]);
          loss.add(weighted(a, nll(x)));
          if (gradient) gradient[i] = stored<Logit>(derivative(x, a));
        },
        [&](auto batch, int64_t i) {
          Packed<Logit, step> packed[batch];
          Packed<Stored, step> targets[batch];
          load_steps<threads, Caching::evict_first, Logit>(logits + i, packed);
          load_steps<threads, Caching::evict_first, Logit>(target + i, targets);
#pragma unroll
          for (int k = 0; k < batch; k++) {
            Real x[step], a[step], sum = 0;
            packed[k].numbers(x);
            targets[k].numbers(a);
#pragma unroll
            for (int j = 0; j < step; j++) {
              sum += weighted(a[j], nll(x[j]));
              x[j] = derivative(x[j], a[j]);
            }
            loss.add(sum);
            if (gradient) store<Logit>(gradient + i + k * kRound<threads, Logit>, x);
          }
        });
    store_results(rows, row, across_block<threads>(loss.value(), Sum()), sums.max, log_sum);
  }
}

template <class Logit, class Target>
struct StreamingKernel {
  void (*kernel)(CrossEntropyRows<Logit, Target>);
  int threads;
};

template <class Logit>
StreamingKernel<Logit, ClassIndices> streaming_kernel(const CrossEntropyRows<Logit, ClassIndices>& rows) {
  const auto of = [&](auto threads) -> StreamingKernel<Logit, ClassIndices> {
    return {
        rows.gradient ? cross_entropy_streaming<true, threads, Logit> : cross_entropy_streaming<false, threads, Logit>,
        threads};
  };
  const bool is_short = static_cast<int64_t>(rows.classes * sizeof(Logit)) <= kLongestShortRow;
  return is_short ? of(Count<kStreamingThreadsOfShortRows>{}) : of(Count<kStreamingThreads>{});
}
template <class Logit, class Stored>
StreamingKernel<Logit, ClassProbabilities<Stored>> streaming_kernel(
    const CrossEntropyRows<Logit, ClassProbabilities<Stored>>&) {
  return {cross_entropy_streaming<Logit, Stored>, kStreamingThreads};
}

template <class Logit, class Target>
cudaError_t launch_streaming(cudaStream_t stream, const CrossEntropyRows<Logit, Target>& rows) {
  const int64_t blocks = rows.rows < 0x7fffffff ? rows.rows : 0x7fffffff;
  const auto [kernel, threads] = streaming_kernel(rows);
  kernel<<<static_cast<unsigned>(blocks), threads, 0, stream>>>(rows);
  return cudaGetLastError();
}

}  // namespace jaxloss::gpu
