// What options make of the logits of a row, and what is summed of that.
//
// The score of a class is its logit, or what the softcap makes of it; the logit z that counts is the score over the
// temperature. Options keep the order of the logits, so the largest score is that of the largest logit, which two
// 16-bit numbers at a time are compared for.
#pragma once

#include "gpu/options/results.cuh"
#include "maths/cross_entropy_options.h"

namespace jaxloss::gpu {

// What a kernel is compiled for; everything else about the options is a number of the row.
template <bool capped_, bool dense_, bool detailed_, bool weighted_ = false, bool ranked_ = detailed_>
struct OptionKind {
  static constexpr bool capped = capped_;      // there may be a softcap
  static constexpr bool dense = dense_;        // all classes may have a target
  static constexpr bool detailed = detailed_;  // entropy, prediction and rank may be wanted, or a gradient of entropy
  static constexpr bool weighted = weighted_;  // all classes may have a target that is not the same for all
  static constexpr bool ranked = ranked_;      // the rank may be wanted
};

// How far from 0 the logits are that a thread holds, in softcaps: tanh is a polynomial within one, of fewer terms
// within a half, and a quotient of two within three. `any` is also that of logits which want care for something else;
// without a softcap all others are `within_three`.
enum class Reach { any, within_three, within_one, within_half };
template <Reach reach_>
struct ReachOf {
  static constexpr Reach value = reach_;
};

template <bool capped>
struct Scores {
  float softcap, inverse_softcap;

  __device__ __forceinline__ explicit Scores(const RowObjective<float>& objective)
      : softcap(objective.softcap), inverse_softcap(objective.inverse_softcap) {}

  __device__ __forceinline__ Reach reach(float largest) const {
    const float w = largest * inverse_softcap;
    if (!capped || (w > 1 && w <= 3)) return Reach::within_three;
    return w <= 0.5f ? Reach::within_half : w <= 1 ? Reach::within_one : Reach::any;
  }

  __device__ __forceinline__ float of(float x) const {
    if constexpr (!capped) return x;
    const float w = x * inverse_softcap, decay = power_of_two(fabsf(w) * -2.88539008f);
    return softcap * (fabsf(w) <= 3 ? tanh_within_three(w) : copysignf((1 - decay) * reciprocal(1 + decay), w));
  }
  // How far the score is from the largest, and its slope.
  __device__ __forceinline__ float beyond(float x, float max) const { return of(x) - max; }
  __device__ __forceinline__ float beyond(float x, float max, float& slope) const {
    slope = this->slope(x);
    return beyond(x, max);
  }
  template <Reach within>
  __device__ __forceinline__ float beyond(ReachOf<within> reach, float x, float max) const {
    return capped ? fmaf(tanh(reach, x * inverse_softcap), softcap, -max) : x - max;
  }
  // The same as a power of 2, of logits within a reach, from what is to be a power for the largest: in one operation of
  // a product and a sum, which is off by as much for all of them.
  template <Reach within>
  __device__ __forceinline__ float exponent(ReachOf<within> reach, float x, float factor, float largest) const {
    if constexpr (!capped) return fmaf(x, factor, -largest);
    return fmaf(tanh(reach, x * inverse_softcap), softcap * factor, -largest);
  }
  template <class Logit, Reach within>
  __device__ __forceinline__ float exponent(ReachOf<within> reach, float x, float factor, float largest,
                                            float& slope) const {
    slope = 1;
    if constexpr (!capped) return fmaf(x, factor, -largest);
    const float w = x * inverse_softcap, t = tanh(reach, w);
    slope = within == Reach::within_three && sizeof(Logit) == 4 ? slope_of(w) : fmaf(-t, t, 1.0f);
    return fmaf(t, softcap * factor, -largest);
  }
  // That of a score.
  __device__ __forceinline__ float exponent_of_score(float score, float factor, float largest) const {
    if constexpr (!capped) return fmaf(score, factor, -largest);
    return fmaf(score * inverse_softcap, softcap * factor, -largest);
  }
  __device__ __forceinline__ float slope(float x) const { return capped ? slope_of(x * inverse_softcap) : 1.0f; }

 private:
  template <Reach within>
  static __device__ __forceinline__ float tanh(ReachOf<within>, float w) {
    return within == Reach::within_half  ? tanh_within_half(w)
           : within == Reach::within_one ? tanh_within_one(w)
                                         : tanh_within_three(w);
  }
  // Within 1.5 ulp for |w| up to 1/2, and up to 1: the polynomials of w² whose largest error relative to tanh w / w is
  // least. A reciprocal takes a GPU as long as eight products with sums.
  static __device__ __forceinline__ float tanh_within_half(float w) {
    const float square = w * w;
    const float sum = fmaf(fmaf(0.0171350073f, square, -0.0529860742f), square, 0.133247793f);
    return w * fmaf(fmaf(sum, square, -0.333330691f), square, 1.0f);
  }
  static __device__ __forceinline__ float tanh_within_one(float w) {
    const float square = w * w;
    float sum = fmaf(fmaf(-0.000353345589f, square, 0.00228222972f), square, -0.00791744515f);
    sum = fmaf(fmaf(fmaf(sum, square, 0.0214648210f), square, -0.0538709126f), square, 0.133321598f);
    return w * fmaf(fmaf(sum, square, -0.333332777f), square, 1.0f);
  }
  // Within 3 ulp for |w| up to 3: the same as a quotient of such polynomials.
  static __device__ __forceinline__ float tanh_within_three(float w) {
    const float square = w * w;
    const float above = fmaf(fmaf(0.00185836717f, square, 0.119426318f), square, 0.999999970f);
    const float below = fmaf(fmaf(fmaf(8.13968011e-5f, square, 0.0194456960f), square, 0.452759242f), square, 1.0f);
    return w * above * reciprocal(below);
  }
  // 1 − tanh², in which a small one would lose its digits.
  static __device__ __forceinline__ float slope_of(float w) {
    const float decay = decay_of(2 * fabsf(w)), inverse = reciprocal(1 + decay);
    return 4 * decay * inverse * inverse;
  }
};

// body(ReachOf<reach>) of a reach that is not `any`.
template <bool capped, class Body>
__device__ __forceinline__ void for_reach(Reach reach, Body body) {
  if (capped && reach == Reach::within_half) {
    body(ReachOf<Reach::within_half>{});
  } else if (capped && reach == Reach::within_one) {
    body(ReachOf<Reach::within_one>{});
  } else {
    body(ReachOf<Reach::within_three>{});
  }
}

template <class Kind>
constexpr bool kPlainOptions = !Kind::capped && !Kind::dense && !Kind::detailed;

constexpr int kNoClass = 0x7fffffff;
constexpr float kLeastPower = -0x1p100f;  // of 2, that is finite and far from infinite
constexpr float kLargestPower = 0x1p22f;  // of 2; a product that is not rounded is off by a half at most from there on

// Of the classes of a row but its label, relative to the largest score: Σ of their terms, and what they have of the
// target.
struct alignas(16) DenseSums {
  float max, sum, target, unused;
};
// The same with Σ of the terms times (score − max), the first of the largest logits, and how many are before the label.
// That largest one is not in the sum (which is −1 of no classes), so that what is small beside it keeps its digits.
struct alignas(16) DetailedSums {
  float max, sum, target, dot;
  float logit;
  int first, before, unused;
};

template <class Kind>
using SumsOf =
    std::conditional_t<Kind::detailed, DetailedSums, std::conditional_t<Kind::dense, DenseSums, SoftmaxSums<float>>>;

template <class Sums>
__device__ __forceinline__ Sums no_scores() {
  if constexpr (std::is_same_v<Sums, DetailedSums>) {
    return {no_logits<float>().max, -1, 0, 0, -INFINITY, kNoClass, 0, 0};
  } else {
    Sums sums{};
    sums.max = no_logits<float>().max;
    return sums;
  }
}

struct Minimum {
  __device__ __forceinline__ int operator()(int a, int b) const { return min(a, b); }
};

// How sums of parts of a row become the row's.
struct MergedScores {
  float factor;  // of a score to a power of 2: log₂ e / temperature

  // What the terms relative to `from` are multiplied by to be relative to `to`.
  __device__ __forceinline__ float ratio(float from, float to) const { return power_of_two((from - to) * factor); }

  template <class Sums>
  __device__ __forceinline__ Sums operator()(const Sums& a, const Sums& b) const {
    if constexpr (std::is_same_v<Sums, DetailedSums>) {
      const bool a_leads = a.logit > b.logit || (a.logit == b.logit && a.first < b.first);
      Sums merged = chosen(a_leads, a, b);
      add_others(merged, chosen(!a_leads, a, b));
      merged.target = a.target + b.target;
      merged.before = a.before + b.before;
      return merged;
    } else {
      Sums merged = a;
      merged.max = fmaxf(a.max, b.max);
      merged.sum = a.sum * ratio(a.max, merged.max) + b.sum * ratio(b.max, merged.max);
      if constexpr (std::is_same_v<Sums, DenseSums>) merged.target = a.target + b.target;
      return merged;
    }
  }

  static __device__ __forceinline__ DetailedSums chosen(bool first, const DetailedSums& a, const DetailedSums& b) {
    return {first ? a.max : b.max,     first ? a.sum : b.sum,     0, first ? a.dot : b.dot,
            first ? a.logit : b.logit, first ? a.first : b.first, 0, 0};
  }

  // Of terms that are relative to a larger score, or as large a one that is not among them.
  __device__ __forceinline__ void add_others(DetailedSums& sums, const DetailedSums& others) const {
    const float count = 1 + others.sum, scale = ratio(others.max, sums.max);
    sums.sum += count * scale;
    sums.dot += weighted(scale, others.dot + weighted(count, others.max - sums.max));
  }
};

// One exponential a lane, as of `Merged`.
template <class Sums>
__device__ __forceinline__ Sums across_lanes(Sums sums, int lanes, MergedScores merge) {
  const float max = across_lanes(sums.max, lanes, Maximum());
  Sums all = sums;
  all.max = max;
  if constexpr (std::is_same_v<Sums, DetailedSums>) {
    all.logit = across_lanes(sums.logit, lanes, Maximum());
    all.first = across_lanes(sums.logit == all.logit ? sums.first : kNoClass, lanes, Minimum());
    const bool leads = sums.first == all.first && all.first != kNoClass;
    if (!leads) {
      all.sum = all.dot = 0;
      merge.add_others(all, sums);
    }
    all.dot = across_lanes(all.dot, lanes, Sum());
    all.before = across_lanes(sums.before, lanes, Sum());
  } else {
    all.sum = sums.sum * merge.ratio(sums.max, max);
  }
  all.sum = across_lanes(all.sum, lanes, Sum());
  if constexpr (!std::is_same_v<Sums, SoftmaxSums<float>>) all.target = across_lanes(sums.target, lanes, Sum());
  if constexpr (std::is_same_v<Sums, DetailedSums>) {
    if (all.first == kNoClass) all.sum -= 1;
  }
  return all;
}

// What is known of a row once its classes are summed.
struct RowSummary {
  float max, log_sum, dot_over_sum;

  // Together with the label's score, which the sums are without: −∞ of a row that has none.
  template <class Sums>
  __device__ __forceinline__ RowSummary(const Sums& others, float label_score, MergedScores merge) {
    const bool leads = label_score >= others.max;
    max = leads ? label_score : others.max;
    const float of_label = label_score == -INFINITY ? 0.0f : merge.ratio(label_score, max);
    if constexpr (std::is_same_v<Sums, DetailedSums>) {
      DetailedSums all = others;
      const bool any = leads || others.first != kNoClass;
      if (leads) {
        all.max = label_score;
        all.sum = all.dot = 0;
        merge.add_others(all, others);
      } else {
        all.sum += of_label;
        all.dot += weighted(of_label, label_score - max);
      }
      const float sum = 1 + all.sum + (max - max);  // NaN of an infinite one
      log_sum = log_of_sum(sum, all.sum, any);
      dot_over_sum = all.dot / sum;
    } else {
      const float rest = leads ? others.sum * merge.ratio(others.max, max) : others.sum;
      log_sum = log_of_sum(rest + of_label, rest, leads);
      dot_over_sum = 0;
    }
  }
};

// What smoothing gives the classes of a row, labels too, of the target.
template <class Kind>
struct Smoothing {
  float smooth;
  const float* weights;

  __device__ __forceinline__ explicit Smoothing(const RowObjective<float>& objective)
      : smooth(Kind::dense ? objective.smooth : 0.0f), weights(Kind::dense ? objective.class_weights : nullptr) {}

  // Masked classes are not smoothed over.
  __device__ __forceinline__ float target(int i, float x) const {
    if (smooth == 0 || (!Kind::capped && x == -INFINITY)) return 0;
    return Kind::weighted && weights ? smooth * weights[i] : smooth;
  }
  // Of a step of classes, of which none is masked.
  template <int step>
  __device__ __forceinline__ void targets(int i, float (&target)[step]) const {
    if (!Kind::weighted || smooth == 0 || !weights) {
#pragma unroll
      for (int j = 0; j < step; j++) target[j] = smooth;
    } else if (aligned(weights + i)) {
#pragma unroll
      for (int j = 0; j < step; j += 4) {
        const float4 four = __ldg(reinterpret_cast<const float4*>(weights + i + j));
        target[j] = smooth * four.x, target[j + 1] = smooth * four.y;
        target[j + 2] = smooth * four.z, target[j + 3] = smooth * four.w;
      }
    } else {
#pragma unroll
      for (int j = 0; j < step; j++) target[j] = smooth * __ldg(weights + i + j);
    }
  }
};

}  // namespace jaxloss::gpu
