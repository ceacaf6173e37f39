// Cross entropy of long rows with class indices on GPUs with clusters (Hopper on): a cluster holds a row in its
// registers.
#pragma once

#include "gpu/rows/cluster.cuh"

namespace jaxloss::gpu {

// Cluster r has row r; its blocks share it in slices of `slice_steps` steps, at most `held` a thread. Of a row
// that is not masked the logits are read once (that of the label by all threads); the gradient is written once.
// Logits and gradient must be aligned alike.
template <bool kGradient, int held, class Logit>
__global__ void __launch_bounds__(kMostThreads<held>, kBlocksAMultiprocessor)
    cross_entropy_cluster(CrossEntropyRows<Logit, ClassIndices> rows, int slice_steps) {
#if __CUDA_ARCH__ >= 900
  constexpr int step = kPerVector<Logit>;
  __shared__ Exchange<SoftmaxSums<float>> exchange;
  if (threadIdx.x == 0) exchange.initialize();
  cluster_arrive();

  const int64_t row = cluster_number(), offset = row * rows.classes;
  const float weight = rows.weight_of(row);
  const int index = rows.target.index[row];
  const bool wanted = !is_masked(weight), valid = index >= 0 && index < rows.classes;
  const Logit* logits = rows.logits + offset;
  const Share<Logit, held> share(logits, static_cast<int>(rows.classes), slice_steps);
  const bool has_label = wanted && valid && share.holds(index);

  Packed<Logit, step> packed[held];
  float edge = -INFINITY, label_logit = -INFINITY;
  SoftmaxSums<float> others = {0, 0};
  if (wanted) {
#pragma unroll
    for (int k = 0; k < held; k++) packed[k] = minus_infinities<Logit>();
    share.for_steps([&](int k, int i) { packed[k] = load<step, kReadOnce<kGradient>>(logits + i); });
    if (share.has_edge) edge = number(logits[share.edge]);
    if (valid) label_logit = number(logits[index]);
    if (has_label) {
      leave_out(packed, share.step_of(index), share.place_of(index));
      if (share.step_of(index) < 0) edge = -INFINITY;
    }
    // Relative to a maximum that has the label: so its logit is there before any thread may write in its place.
    others = across_lanes(softmax_sums(packed, edge, label_logit), kWarp, Merged());
  }
  cluster_wait();
  if (wanted) {
    exchange.publish(others, cluster_size());
    others = exchange.all(no_logits<float>(), Merged());
  }
  const LabelledSums<float> sums(others, wanted && valid, label_logit);

  if (wanted && valid ? has_label : threadIdx.x == 0 && cluster_rank() == 0) {
    const float nll = negative_log_likelihood(sums.log_sum, label_logit - sums.max, rows.ceiling);
    rows.store_results(row, !wanted ? 0.0f : valid ? nll : NAN, sums.max, wanted ? sums.log_sum : 0.0f);
  }

  if constexpr (kGradient) {
    Logit* gradient = rows.gradient + offset;
    if (!valid || weight == 0) {
      const float zeros[step] = {};
      share.for_steps([&](int, int i) { store<Logit>(gradient + i, zeros); });
      if (share.has_edge) gradient[share.edge] = Logit{};
      return;
    }
    const ExponentialsOf<Logit> exponentials(sums.max);
    const float scale = exponentials.corrected(weight * sums.inverse);
    share.for_steps([&](int k, int i) {
      float x[step];
      packed[k].numbers(x);
#pragma unroll
      for (int j = 0; j < step; j++) x[j] = exponentials.term(x[j]) * scale;
      store<Logit, Caching::normal>(gradient + i, x);
    });
    if (share.has_edge) gradient[share.edge] = stored<Logit>(exponentials.term(edge) * scale);
    if (has_label) gradient[index] = stored<Logit>(sums.label_derivative() * weight);
  }
#endif
}

}  // namespace jaxloss::gpu
