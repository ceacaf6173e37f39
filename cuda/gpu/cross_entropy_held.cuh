// Cross entropy with options and class indices, of rows that are held in shared memory: what is made of a row,
// whichever threads hold it. A row is read once, and its gradient is written once.
//
// Each thread copies what it holds of a row at once, and goes along that in loops: with options the code of a step is
// so long that, unrolled over registers, it would not fit the caches of instructions (6 copies of bf16 [7000, 151936]
// with a softcap, on an H200).
//
// The score of a class is its logit, or what the softcap makes of it; the logit z that counts is the score over the
// temperature. Options keep the order of the logits, so the largest score is that of the largest logit, which two
// 16-bit numbers at a time are compared for.
#pragma once

#include "gpu/cross_entropy_results.cuh"
#include "maths/cross_entropy_options.h"

namespace jaxloss::gpu {

// What a kernel is compiled for; everything else about the options is a number of the row.
template <bool capped_, bool dense_, bool detailed_, bool weighted_ = false>
struct OptionKind {
  static constexpr bool capped = capped_;      // there may be a softcap
  static constexpr bool dense = dense_;        // all classes may have a target
  static constexpr bool detailed = detailed_;  // entropy, prediction and rank may be wanted
  static constexpr bool weighted = weighted_;  // all classes may have a target that is not the same for all
};

// `near` is for logits of which the largest is no further from 0 than three softcaps.
template <bool capped>
struct Scores {
  float softcap, inverse_softcap;

  __device__ __forceinline__ explicit Scores(const RowObjective<float>& objective)
      : softcap(objective.softcap), inverse_softcap(objective.inverse_softcap) {}

  __device__ __forceinline__ bool near(float largest) const { return !capped || largest * inverse_softcap <= 3; }

  __device__ __forceinline__ float of(float x) const {
    if constexpr (!capped) return x;
    const float w = x * inverse_softcap, decay = power_of_two(fabsf(w) * -2.88539008f);
    return softcap * (fabsf(w) <= 3 ? near_tanh(w) : copysignf((1 - decay) * reciprocal(1 + decay), w));
  }
  // How far the score is from the largest, and its slope.
  __device__ __forceinline__ float beyond(float x, float max) const { return of(x) - max; }
  __device__ __forceinline__ float beyond(float x, float max, float& slope) const {
    slope = this->slope(x);
    return beyond(x, max);
  }
  // The same as a power of 2, of logits that are near, from what is to be a power for the largest: in one operation of
  // a product and a sum, which is off by as much for all of them.
  __device__ __forceinline__ float exponent(float x, float factor, float largest) const {
    if constexpr (!capped) return fmaf(x, factor, -largest);
    return fmaf(near_tanh(x * inverse_softcap), softcap * factor, -largest);
  }
  template <class Logit>
  __device__ __forceinline__ float exponent(float x, float factor, float largest, float& slope) const {
    slope = 1;
    if constexpr (!capped) return fmaf(x, factor, -largest);
    const float w = x * inverse_softcap, tanh = near_tanh(w);
    slope = sizeof(Logit) == 2 ? fmaf(-tanh, tanh, 1.0f) : slope_of(w);
    return fmaf(tanh, softcap * factor, -largest);
  }
  // That of a score.
  __device__ __forceinline__ float exponent_of_score(float score, float factor, float largest) const {
    if constexpr (!capped) return fmaf(score, factor, -largest);
    return fmaf(score * inverse_softcap, softcap * factor, -largest);
  }
  __device__ __forceinline__ float slope(float x) const { return capped ? slope_of(x * inverse_softcap) : 1.0f; }

 private:
  // Within 3 ulp for |w| up to 3: the quotient of polynomials of w² whose largest error relative to tanh w / w is
  // least.
  static __device__ __forceinline__ float near_tanh(float w) {
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

// e^((score − max) / temperature)
struct TemperedTerms {
  float max, factor;

  __device__ __forceinline__ float term(float score) const { return power_of_two((score - max) * factor); }
};

template <class Kind>
constexpr bool kPlainOptions = !Kind::capped && !Kind::dense && !Kind::detailed;

constexpr int kNoClass = 0x7fffffff;
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
  float factor;

  // What the terms relative to `from` are multiplied by to be relative to `to`.
  __device__ __forceinline__ float ratio(float from, float to) const { return TemperedTerms{to, factor}.term(from); }

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
    sums.dot += (others.dot + weighted(count, others.max - sums.max)) * scale;
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

// The next larger number that is stored so; NaN of infinity.
template <class Logit>
__device__ __forceinline__ float next_above(float x) {
  if constexpr (sizeof(Logit) == 4) {
    const int bits = __float_as_int(x);
    return x == 0 ? __int_as_float(1) : __int_as_float(x > 0 ? bits + 1 : bits - 1);
  } else {
    const uint16_t bits = stored<Logit>(x).bits;
    const Logit next = {static_cast<uint16_t>(x == 0 ? 1 : x > 0 ? bits + 1 : bits - 1)};
    return number(next);
  }
}

// The largest and the smallest of the logits that a thread holds, but the label's; NaNs are passed over, but the
// smallest is NaN of them. And whether the label's is among them.
struct Extent {
  float largest = -INFINITY, smallest = INFINITY;
  bool has_label = false;
};

// A vector with the signs of all its numbers changed.
template <class Logit>
__device__ __forceinline__ Packed<Logit, kPerVector<Logit>> negated(const Packed<Logit, kPerVector<Logit>>& packed) {
  constexpr uint32_t signs = sizeof(Logit) == 4 ? 0x80000000u : 0x80008000u;
  const uint4 all = packed.vector[0];
  return {{make_uint4(all.x ^ signs, all.y ^ signs, all.z ^ signs, all.w ^ signs)}};
}

// How many logits are at least a bar, of 16 bits two at a time, as sums of ones that stay exact for 64 vectors a
// thread.
template <class Logit>
struct CountFrom {
  uint32_t counts = 0;

  __device__ __forceinline__ void add(const Packed<Logit, kPerVector<Logit>>& packed, float bar) {
    const uint4 all = packed.vector[0];
    if constexpr (sizeof(Logit) == 4) {
      float x[4];
      packed.numbers(x);
#pragma unroll
      for (int j = 0; j < 4; j++) counts += x[j] >= bar;
    } else {
      const uint32_t both = stored<Logit>(bar).bits * 0x10001u;
      add(all.x, both), add(all.y, both), add(all.z, both), add(all.w, both);
    }
  }
  __device__ __forceinline__ int value() const {
    if constexpr (sizeof(Logit) == 4) {
      return static_cast<int>(counts);
    } else {
      const Logit low = {static_cast<uint16_t>(counts & 0xffff)}, high = {static_cast<uint16_t>(counts >> 16)};
      return static_cast<int>(number(low) + number(high));
    }
  }

 private:
  __device__ __forceinline__ void add(uint32_t pair, uint32_t bar) {
    if constexpr (std::is_same_v<Logit, bfloat16>) {
      counts = of_pairs<__nv_bfloat162>(
          counts, of_pairs<__nv_bfloat162>(pair, bar, [](auto x, auto y) { return __hge2(x, y); }),
          [](auto x, auto y) { return __hadd2(x, y); });
    } else if constexpr (std::is_same_v<Logit, float16>) {
      counts = of_pairs<__half2>(counts, of_pairs<__half2>(pair, bar, [](auto x, auto y) { return __hge2(x, y); }),
                                 [](auto x, auto y) { return __hadd2(x, y); });
    }
  }
};

// What a thread holds of a row: every `stride`-th step from `first` on, up to `end`, and of the edges every
// `threads`-th. Its own steps lie in shared memory, `blockDim.x` vectors apart.
template <class Logit>
struct Held {
  static constexpr int step = kPerVector<Logit>;
  const Logit* logits;
  uint4* slots;
  int head, steps, edges;       // of the row
  int first, end, stride;       // of its steps, this thread's
  int first_edge, edge_stride;  // of its edges
  float first_edge_logit = -INFINITY;

  __device__ __forceinline__ void load() {
    for_slots([&](uint4* slot, int i) {
      asm volatile(
          "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(slot))),
          "l"(__cvta_generic_to_global(logits + i))
          : "memory");
    });
    if (first_edge < edges) first_edge_logit = number(logits[edge(first_edge)]);
  }
  __device__ __forceinline__ void wait() const { asm volatile("cp.async.wait_all;" ::: "memory"); }

  // body(packed, i) for each of this thread's steps, which begins at number i.
  template <class Body>
  __device__ __forceinline__ void for_vectors(Body body) const {
    for_slots([&](const uint4* slot, int i) { body(Packed<Logit, step>{{*slot}}, i); });
  }
  // body(i, x) for each number of the edges that is this thread's.
  template <class Body>
  __device__ __forceinline__ void for_edges(Body body) const {
    for (int k = first_edge; k < edges; k += edge_stride) {
      body(edge(k), k == first_edge ? first_edge_logit : number(logits[edge(k)]));
    }
  }
  __device__ __forceinline__ bool in_steps(int i) const { return i >= head && i < head + steps * step; }
  __device__ __forceinline__ bool holds(int i) const {
    const int vector = (i - head) / step, k = i < head ? i : i - steps * step;
    if (in_steps(i)) return vector >= first && vector < end && (vector - first) % stride == 0;
    return k >= first_edge && k < edges && (k - first_edge) % edge_stride == 0;
  }
  // The label's logit is then `replaced` in its step.
  __device__ __forceinline__ Extent extent(int label, float replaced) const {
    Extent extent;
    Packed<Logit, step> most = minus_infinities<Logit>(), least = negated(most);
    for_slots([&](uint4* slot, int i) {
      Packed<Logit, step> high = {{*slot}}, low = high;
      if (static_cast<unsigned>(label - i) < step) {
        extent.has_label = true;
        reinterpret_cast<Logit*>(slot)[label - i] = stored<Logit>(replaced);
        gpu::leave_out(high, label - i);
        low = negated(low);
        gpu::leave_out(low, label - i);
        low = negated(low);
      }
      take<true>(most, high);
      take<false>(least, low);
    });
    float x[step];
    most.numbers(x);
#pragma unroll
    for (int j = 0; j < step; j++) extent.largest = fmaxf(extent.largest, x[j]);
    least.numbers(x);
#pragma unroll
    for (int j = 0; j < step; j++) extent.smallest = smaller_or_nan(extent.smallest, x[j]);
    for_edges([&](int i, float logit) {
      extent.has_label |= i == label;
      if (i == label) return;
      extent.largest = fmaxf(extent.largest, logit);
      extent.smallest = smaller_or_nan(extent.smallest, logit);
    });
    return extent;
  }

 private:
  template <bool larger>
  static __device__ __forceinline__ void take(Packed<Logit, step>& kept, const Packed<Logit, step>& more) {
    uint4& a = kept.vector[0];
    const uint4& b = more.vector[0];
    if constexpr (larger) {
      a = make_uint4(larger_of(a.x, b.x, Logit()), larger_of(a.y, b.y, Logit()), larger_of(a.z, b.z, Logit()),
                     larger_of(a.w, b.w, Logit()));
    } else {
      a = make_uint4(smaller_of(a.x, b.x, Logit()), smaller_of(a.y, b.y, Logit()), smaller_of(a.z, b.z, Logit()),
                     smaller_of(a.w, b.w, Logit()));
    }
  }
  __device__ __forceinline__ int edge(int k) const { return k < head ? k : k + steps * step; }
  template <class Body>
  __device__ __forceinline__ void for_slots(Body body) const {
    uint4* slot = slots;
#pragma unroll 1
    for (int i = first; i < end; i += stride) {
      body(slot, head + i * step);
      slot += blockDim.x;
    }
  }
};

// All threads that share a row call it, and all of a warp, also for rows that are masked or not there, of which they
// hold nothing. `Team` knows which threads they are: see the two kinds of it.
template <class Kind, bool kGradient, class Logit, class Team>
__device__ __forceinline__ void cross_entropy_of_held_row(const CrossEntropyOptionRows<Logit, ClassIndices>& rows,
                                                          const RowObjective<float>& objective, int64_t row,
                                                          float weight, bool exists, const Held<Logit>& held,
                                                          const Team& team) {
  constexpr int step = kPerVector<Logit>;
  const bool wanted = exists && !is_masked(weight);
  const bool has_label = wanted && objective.holds(0), has_second = wanted && objective.holds(1);
  const int label = has_label ? static_cast<int>(objective.label[0]) : -1;
  const int second = has_second ? static_cast<int>(objective.label[1]) : -1;

  const float label_logit = has_label ? number(held.logits[label]) : -INFINITY;
  const float second_logit = has_second ? number(held.logits[second]) : -INFINITY;
  const Scores<Kind::capped> scores(objective);
  const float label_score = has_label ? scores.of(label_logit) - objective.margin : -INFINITY;
  const float second_score = second == label ? label_score : scores.of(second_logit);
  const Smoothing<Kind> smoothing(objective);
  const bool smooths = Kind::dense && smoothing.smooth != 0;
  const float inverse_temperature = objective.inverse_temperature;
  const MergedScores merge{inverse_temperature * 1.44269504f};
  // Read with the rest, not waited for once the sums are there.
  const float label_target = has_label ? objective.label_target(0) : 0.0f;
  const float second_target = has_second ? objective.label_target(1) : 0.0f;
  const float label_smoothed = has_label ? smoothing.target(label, label_logit) : 0.0f;
  held.wait();
  // The label's is then a logit that adds nothing to a sum: −∞ of logits that are their scores.
  const Extent extent = held.extent(label, Kind::capped ? NAN : -INFINITY);
  const float largest_logit = across_lanes(extent.largest, team.lanes, Maximum());
  const float largest_score = fmaxf(scores.of(largest_logit), no_logits<float>().max);
  const TemperedTerms terms{largest_score, merge.factor};
  // Of most rows no class is masked, a softcap is not far exceeded, and no logit is so large that its exponent would be
  // far off: what needs no care for that is shorter.
  const float most = fmaxf(fabsf(extent.largest), fabsf(extent.smallest)), power = largest_score * merge.factor;
  const bool finite = kPlainOptions<Kind> || extent.smallest > -INFINITY;
  const bool simple = finite && scores.near(most) && fabsf(power) < kLargestPower;
  // Whether a step of `count` has that class; fix(j) for it then.
  const auto if_in_step = [](auto count, int i, int of_class, auto fix) {
    if (static_cast<unsigned>(of_class - i) < count) {
#pragma unroll
      for (int j = 0; j < count; j++) {
        if (i + j == of_class) fix(j);
      }
    }
  };

  auto sums = no_scores<SumsOf<Kind>>();
  sums.max = terms.max;
  // Of the lanes that have one of the largest logits, the first leaves its first one out of the sum.
  int first = kNoClass, before = 0;
  bool looks = false, has_largest = false, leaves_out = false, any_leads = false;
  if constexpr (Kind::detailed) {
    has_largest = looks = extent.largest == largest_logit && largest_logit > -INFINITY;
    const int leader = across_lanes(looks ? team.lane() : kWarp, team.lanes, Minimum());
    leaves_out = leader == team.lane();
    any_leads = leader < kWarp;
  }
  const float above_label = next_above<Logit>(label_logit);
  float parts[4] = {}, dots[2] = {}, step_targets = 0;  // several, for each waits for its last addition
  // Terms, and how far they are from the largest: that of one of the largest is left out.
  const auto leave_out_largest = [&](int i, const auto& x, auto& term, float& of_step) {
    constexpr int count = sizeof(x) / sizeof(x[0]);
    if (!(count == 1 ? has_largest : looks) || of_step < 0.99f) return;  // steps come in order, edges do not
    int found = count;
#pragma unroll
    for (int j = count - 1; j >= 0; j--) found = x[j] == largest_logit ? j : found;
    if (found == count) return;
    first = min(first, i + found);
    if (leaves_out && looks) {
      of_step = 0;
#pragma unroll
      for (int j = 0; j < count; j++) {
        term[j] = j == found ? 0.0f : term[j];
        of_step += term[j];
      }
    }
    looks = false;
  };
  const auto sum_of = [](const auto& term) {
    constexpr int count = sizeof(term) / sizeof(term[0]);
    float sums[2] = {};
#pragma unroll
    for (int j = 0; j < count; j++) sums[j % 2] += term[j];
    return sums[0] + sums[1];
  };
  const auto add = [&](auto& x, auto& target, int i) {
    constexpr int count = sizeof(x) / sizeof(x[0]);
    float beyond[count], term[count];
#pragma unroll
    for (int j = 0; j < count; j++) {
      beyond[j] = scores.beyond(x[j], terms.max);
      term[j] = power_of_two(beyond[j] * terms.factor);
    }
    if_in_step(Count<count>{}, i, label, [&](int j) { term[j] = beyond[j] = target[j] = 0; });
    float of_step = sum_of(term);
    if constexpr (Kind::detailed) {
      leave_out_largest(i, x, term, of_step);
#pragma unroll
      for (int j = 0; j < count; j++) {
        dots[j % 2] += term[j] * fmaxf(beyond[j], no_logits<float>().max);  // infinitely far, and times 0
        before += i + j != label && (x[j] > label_logit || (x[j] == label_logit && i + j < label));
      }
    }
    parts[0] += of_step;
#pragma unroll
    for (int j = 0; j < count; j++) {
      if (Kind::dense) step_targets += !Kind::capped && x[j] == -INFINITY ? 0.0f : target[j];
    }
  };
  if (simple) {
    CountFrom<Logit> from_label;
    held.for_vectors([&](const Packed<Logit, step>& packed, int i) {
      float x[step], exponent[step], term[step];
      packed.numbers(x);
#pragma unroll
      for (int j = 0; j < step; j++) {
        exponent[j] = scores.exponent(x[j], terms.factor, power);
        term[j] = power_of_two(exponent[j]);
        if (Kind::capped) term[j] = fmaxf(term[j], 0.0f);  // NaN of the label alone
      }
      if constexpr (Kind::detailed) {
        float of_step = sum_of(term);
        leave_out_largest(i, x, term, of_step);
        parts[0] += of_step;
        if_in_step(Count<step>{}, i, label, [&](int of_label) {
          exponent[of_label] = 0;
#pragma unroll
          for (int j = 0; j < step; j++) before += j < of_label && x[j] == label_logit;
        });
        from_label.add(packed, i + step <= label ? label_logit : above_label);
#pragma unroll
        for (int j = 0; j < step; j++) dots[j % 2] = fmaf(term[j], exponent[j], dots[j % 2]);
      }
      if constexpr (!Kind::detailed) {
#pragma unroll
        for (int j = 0; j < step; j++) parts[j % 4] += term[j];
      }
      if constexpr (Kind::dense) {
        if (!Kind::weighted || !smoothing.weights) {
          step_targets += step * smoothing.smooth;
        } else if (smooths) {
          float target[step];
          smoothing.targets(i, target);
#pragma unroll
          for (int j = 0; j < step; j++) step_targets += target[j];
        }
      }
    });
    if constexpr (Kind::dense) {
      if (extent.has_label && held.in_steps(label)) step_targets -= smoothing.target(label, 0);
    }
    before += from_label.value();
    // What all exponents are off by is that of the largest logit.
    const float off = scores.exponent_of_score(largest_score, terms.factor, power), ratio = power_of_two(-off);
#pragma unroll
    for (int k = 0; k < 4; k++) parts[k] *= ratio;
    dots[0] = ((dots[0] + dots[1]) * ratio - off * ((parts[0] + parts[1]) + (parts[2] + parts[3]))) *
              (0.693147181f * objective.temperature);
    dots[1] = 0;
  } else {
    held.for_vectors([&](const Packed<Logit, step>& packed, int i) {
      float x[step], target[step];
      packed.numbers(x);
      smoothing.targets(i, target);
      add(x, target, i);
    });
  }
  held.for_edges([&](int i, float logit) {
    if (i == label) return;
    float x[1] = {logit}, target[1] = {smoothing.target(i, logit)};
    add(x, target, i);
  });
  sums.sum = across_lanes((parts[0] + parts[1]) + (parts[2] + parts[3]), team.lanes, Sum());
  if constexpr (Kind::detailed) {
    if (!any_leads) sums.sum -= 1;
    sums.first = across_lanes(first, team.lanes, Minimum());
    sums.logit = sums.first == kNoClass ? -INFINITY : largest_logit;
    sums.dot = across_lanes(dots[0] + dots[1], team.lanes, Sum());
    sums.before = across_lanes(before, team.lanes, Sum());
  }
  if constexpr (Kind::dense) sums.target = across_lanes(step_targets, team.lanes, Sum());
  // Where a label is NaN so is its row: and so the labels' logits are there before any thread may write in their
  // places.
  sums.sum = where_a_number(label_logit, where_a_number(second_logit, sums.sum));
  sums = team.merged(sums, merge, wanted);

  const RowSummary summary(sums, label_score, merge);
  const float max = summary.max, log_sum = summary.log_sum, lse = max * inverse_temperature + log_sum;
  const auto of_score = [&](float score) { return log_sum - (score - max) * inverse_temperature; };
  float total = label_smoothed + label_target + second_target + 2 * weighted(objective.z_loss, lse);
  if constexpr (Kind::dense) total += sums.target;

  const bool has_gradient = kGradient && wanted && objective.valid && weight != 0;
  const float to_logits = weight * inverse_temperature;
  Logit* gradient = kGradient ? rows.gradient + row * rows.classes : nullptr;
  float losses[2] = {};
  if (has_gradient || smooths) {
    const float ceiling = fminf(rows.ceiling, -no_logits<float>().max);  // finite, for it is taken times 0
    const float scale = total * exponential(-log_sum) * to_logits, largest_power = max * merge.factor;
    const float off = scores.exponent_of_score(max, merge.factor, largest_power);
    const float scale_of_simple = scale * power_of_two(-off);
    const auto to_derivatives = [&](auto& x, auto& target, int i) {
      constexpr int count = sizeof(x) / sizeof(x[0]);
      if_in_step(Count<count>{}, i, label, [&](int j) { target[j] = 0; });
#pragma unroll
      for (int j = 0; j < count; j++) {
        float slope;
        if (!Kind::capped && x[j] == -INFINITY) target[j] = 0;
        const float beyond = scores.beyond(x[j], max, slope);
        const float loss = fminf(fmaf(-beyond, inverse_temperature, log_sum), ceiling);
        if (Kind::dense) losses[j % 2] = fmaf(target[j], loss, losses[j % 2]);
        x[j] = (power_of_two(beyond * merge.factor) * scale - target[j] * to_logits) * slope;
      }
    };
    // The label's replaced logit is taken for one that is clipped: so it has to be.
    const bool label_in_steps = Kind::dense && extent.has_label && held.in_steps(label);
    const bool may_subtract = !label_in_steps || !smooths || ceiling < 1e4f;
    if (simple && may_subtract && fabsf(largest_power) < kLargestPower) {
      const float smooth_of_logits = smoothing.smooth * to_logits, of_exponent = 0.693147181f;
      const float log_sum_off = fmaf(off, of_exponent, log_sum);
      float simple_losses[2] = {};
      held.for_vectors([&](const Packed<Logit, step>& packed, int i) {
        float x[step], loss[step], slope[step];
        packed.numbers(x);
#pragma unroll
        for (int j = 0; j < step; j++) {
          const float exponent = scores.template exponent<Logit>(x[j], merge.factor, largest_power, slope[j]);
          if (Kind::dense) loss[j] = exponent;
          x[j] = power_of_two(exponent) * scale_of_simple;
          if (Kind::dense && !(Kind::weighted && smoothing.weights)) x[j] -= smooth_of_logits;
          if (Kind::capped && !(Kind::weighted && smooths && smoothing.weights)) x[j] *= slope[j];
        }
        if (Kind::dense && smooths) {
#pragma unroll
          for (int j = 0; j < step; j++) loss[j] = fminf(fmaf(loss[j], -of_exponent, log_sum_off), ceiling);
          if (!Kind::weighted || !smoothing.weights) {
#pragma unroll
            for (int j = 0; j < step; j++) simple_losses[j % 2] += loss[j];
          } else {
            float target[step];
            smoothing.targets(i, target);
#pragma unroll
            for (int j = 0; j < step; j++) {
              losses[j % 2] = fmaf(target[j], loss[j], losses[j % 2]);
              x[j] = fmaf(-target[j], to_logits, x[j]) * slope[j];
            }
          }
        }
        if (has_gradient) store<Logit, Team::caching>(gradient + i, x);
      });
      losses[0] += smoothing.smooth * (simple_losses[0] + simple_losses[1]);
      if (label_in_steps && smooths) losses[0] -= smoothing.target(label, 0) * ceiling;
    } else {
      held.for_vectors([&](const Packed<Logit, step>& packed, int i) {
        float x[step], target[step];
        packed.numbers(x);
        smoothing.targets(i, target);
        to_derivatives(x, target, i);
        if (has_gradient) store<Logit, Team::caching>(gradient + i, x);
      });
    }
    held.for_edges([&](int i, float logit) {
      if (i == label) return;
      float x[1] = {logit}, target[1] = {smoothing.target(i, logit)};
      to_derivatives(x, target, i);
      if (has_gradient) gradient[i] = stored<Logit>(x[0]);
    });
    // Of a label: its total (softmax − 1) + (total − target), in which nothing cancels.
    const auto store_label = [&](int i, float x, float score, float target) {
      const float missing = exponential_minus_one(-of_score(score));
      gradient[i] = stored<Logit>((total * missing + (total - target)) * (scores.slope(x) * to_logits));
    };
    if (has_gradient) {
      if (second != label && has_second && held.holds(second)) {
        store_label(second, second_logit, second_score, second_target + smoothing.target(second, second_logit));
      }
      if (extent.has_label) {
        store_label(label, label_logit, label_score,
                    label_target + label_smoothed + (second == label ? second_target : 0.0f));
      }
    }
  }
  if constexpr (kGradient) {
    const int64_t written = has_gradient ? objective.classes : 0;
    if (exists && written < rows.classes) zero_gradient(rows, team.threads(), row, written);
  }
  float loss = 0;
  if constexpr (Kind::dense) {
    if (smooths) loss = team.sum_of_losses(across_lanes(losses[0] + losses[1], team.lanes, Sum()), wanted);
  }
  if (!exists || !team.leads()) return;

  const int no_rank = static_cast<int>(rows.smoothed_classes);
  RowResults<float> results{0, 0, 0, 0, 0, -1, no_rank};
  if (wanted) {
    const float of_label = has_label ? of_score(label_score) : 0.0f;
    const float of_second = has_second ? of_score(second_score) : 0.0f;
    loss += weighted(objective.z_loss, lse * lse);
    loss += weighted(label_target + label_smoothed, at_most(of_label, rows.ceiling)) +
            weighted(second_target, at_most(of_second, rows.ceiling));
    const float nll = weighted(objective.share[0], of_label) + weighted(objective.share[1], of_second);
    results.loss = objective.valid ? where_a_number(log_sum, loss) : NAN;
    results.nll = objective.valid ? where_a_number(log_sum, nll) : NAN;
    results.max = max * inverse_temperature;
    results.log_sum = log_sum;
    if constexpr (Kind::detailed) {
      results.entropy = log_sum - summary.dot_over_sum * inverse_temperature;
      const bool label_leads =
          label_logit > -INFINITY && (label_logit > sums.logit || (label_logit == sums.logit && label < sums.first));
      const int predicted = label_leads ? label : sums.first;
      results.predicted = predicted == kNoClass ? 0 : predicted;
      results.rank = has_label ? sums.before : no_rank;
    }
  }
  write_results(rows, RowTeam{1, 0}, row, results);
}

}  // namespace jaxloss::gpu
