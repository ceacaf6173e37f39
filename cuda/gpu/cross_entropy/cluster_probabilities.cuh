// Cross entropy of long rows with probabilities on GPUs with clusters (Hopper on): a cluster holds a row's logits and
// its target in its registers.
#pragma once

#include "gpu/rows/cluster.cuh"

namespace jaxloss::gpu {

// Steps, of logits and of as many probabilities, that a thread holds.
template <class Logit, class Stored>
constexpr int kHeldWithTarget = kHeldVectors / (1 + kPerVector<Logit> / kPerVector<Stored>);

// Cluster r has row r; its blocks share it in slices of `slice_steps` steps, at most `held` a thread. Of a row that is
// not masked logits and probabilities are read once; the gradient is written once. All three must be aligned alike.
template <bool kGradient, class Logit, class Stored>
__global__ void __launch_bounds__(kMostThreads<kHeldVectors>, kBlocksAMultiprocessor)
    cross_entropy_cluster_probabilities(CrossEntropyRows<Logit, ClassProbabilities<Stored>> rows, int slice_steps) {
#if __CUDA_ARCH__ >= 900
  constexpr int step = kPerVector<Logit>, held = kHeldWithTarget<Logit, Stored>;
  __shared__ Exchange<SoftmaxSums<float>> exchange;
  __shared__ Exchange<float> targets_exchange, losses;
  if (threadIdx.x == 0) {
    exchange.initialize();
    targets_exchange.initialize();
    losses.initialize();
  }
  cluster_arrive();

  const int64_t row = cluster_number(), offset = row * rows.classes;
  const bool writes = threadIdx.x == 0 && cluster_rank() == 0;
  const float weight = rows.weight_of(row);
  const Logit* logits = rows.logits + offset;
  const Stored* target = rows.target.probability + offset;
  Logit* gradient = kGradient ? rows.gradient + offset : nullptr;
  const Share<Logit, held> share(logits, static_cast<int>(rows.classes), slice_steps);

  if (is_masked(weight)) {
    if (writes) rows.store_results(row, 0, 0, 0);
    if constexpr (kGradient) {
      const float zeros[step] = {};
      share.for_steps([&](int, int i) { store<Logit>(gradient + i, zeros); });
      if (share.has_edge) gradient[share.edge] = Logit{};
    }
    cluster_wait();
    return;
  }

  Packed<Logit, step> packed[held];
  Packed<Stored, step> targets[held];
#pragma unroll
  for (int k = 0; k < held; k++) {
    packed[k] = minus_infinities<Logit>();
    targets[k] = {};
  }
  share.for_steps([&](int k, int i) {
    packed[k] = load<step, kReadOnce<kGradient>>(logits + i);
    targets[k] = load<step, kReadOnce<kGradient>>(target + i);
  });
  const float edge = share.has_edge ? number(logits[share.edge]) : -INFINITY;
  const float edge_target = share.has_edge ? number(target[share.edge]) : 0.0f;
  SoftmaxSums<float> others = sums_without_largest(packed, edge);
  float target_sum = edge_target;
  if constexpr (kGradient) {
#pragma unroll
    for (int k = 0; k < held; k++) {
      float a[step], sum = 0;
      targets[k].numbers(a);
#pragma unroll
      for (int j = 0; j < step; j++) sum += a[j];
      target_sum += sum;
    }
    target_sum = across_lanes(target_sum, kWarp, Sum());
  }
  cluster_wait();
  exchange.publish(others, cluster_size());
  if constexpr (kGradient) {
    targets_exchange.publish(target_sum, cluster_size());
    target_sum = targets_exchange.all(0, Sum());
  }
  others = exchange.all(SoftmaxSums<float>{no_logits<float>().max, -1.0f}, MergedWithoutLargest());
  const float max = others.max, rest = others.sum, sum = 1 + rest;
  const float log_sum = log_of_sum(sum, rest, sum > 0);

  const Exponentials<float> exponentials(max);
  const float scale = target_sum / sum, largest = sure_maximum(max, sum);
  const auto add_loss = [&](float& sum, float x, float a) {
    const float nll = smaller_or_nan(log_sum - (x - max), rows.ceiling);
    if (a != 0) sum += a * nll;  // where it is 0 even an infinite one is no loss
  };
  const auto derivative = [&](float x, float a) {
    const float of_class = exponentials.term(x) * scale - a;
    return weight == 0 ? 0.0f : (x == largest ? (target_sum - a) - rest * scale : of_class) * weight;
  };
  float loss = 0;
  add_loss(loss, edge, edge_target);
  share.for_steps([&](int k, int i) {
    float x[step], a[step], sum = 0;
    packed[k].numbers(x);
    targets[k].numbers(a);
#pragma unroll
    for (int j = 0; j < step; j++) {
      add_loss(sum, x[j], a[j]);
      if constexpr (kGradient) x[j] = derivative(x[j], a[j]);
    }
    loss += sum;
    if constexpr (kGradient) store<Logit, Caching::normal>(gradient + i, x);
  });
  if constexpr (kGradient) {
    if (share.has_edge) gradient[share.edge] = stored<Logit>(derivative(edge, edge_target));
  }

  // The first block waits for the losses of the others, which are done.
  losses.publish(across_lanes(loss, kWarp, Sum()), 1);
  if (cluster_rank() == 0 && threadIdx.x < kWarp) {
    loss = losses.all(0, Sum());
    if (writes) rows.store_results(row, loss, max, log_sum);
  }
#endif
}

}  // namespace jaxloss::gpu
