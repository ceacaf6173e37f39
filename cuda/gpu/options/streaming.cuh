// Cross entropy with options and class indices where no gradient is wanted: a block a long row, which it reads once.
// (Threads that hold a row wait for all of it, and take up to twice as long.)
#pragma once

#include "gpu/core/device.h"
#include "gpu/options/held.cuh"

namespace jaxloss::gpu {

// Threads of a block: few, for what a thread does once a row is as much as 50 to 150 classes. How many there are to be
// on a multiprocessor, and steps in flight in a thread: registers limit these.
template <class Kind>
constexpr int kOptionThreads = Kind::capped || Kind::detailed ? 64 : 128;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
template <class Kind>
constexpr int kOptionBlocks = (Kind::detailed ? 512 : 1024) / kOptionThreads<Kind>;
#else
template <class Kind>
constexpr int kOptionBlocks = (Kind::detailed ? 768 : 1024) / kOptionThreads<Kind>;
#endif
template <class Kind>
constexpr int kOptionSteps = Kind::detailed ? (Kind::capped ? 2 : 3) : 4;

// Of the classes of a row but its label, of which all that are not masked have the same target: how many have it, and
// Σ (score − max) of these, as an exponent of 2.
struct alignas(16) SmoothedSums {
  float max, sum, count, distance;
};
template <class Kind>
using StreamedSums = std::conditional_t<Kind::dense, SmoothedSums, SumsOf<Kind>>;

__device__ __forceinline__ SmoothedSums across_lanes(SmoothedSums sums, int lanes, MergedScores merge) {
  const float max = across_lanes(sums.max, lanes, Maximum()), difference = (sums.max - max) * merge.factor;
  return {max, across_lanes(sums.sum * power_of_two(difference), lanes, Sum()), across_lanes(sums.count, lanes, Sum()),
          across_lanes(sums.distance + weighted(sums.count, difference), lanes, Sum())};
}

// The sums of the classes that the lanes of a warp have seen of a row, but its first label, relative to the largest of
// their scores. With details that is the warp's, and the first of the largest logits is left out; else it is the
// lane's. All lanes call what adds classes.
template <class Kind, class Logit>
class RunningScores {
 public:
  static constexpr int step = kPerVector<Logit>;

  __device__ __forceinline__ RunningScores(const RowObjective<float>& objective, MergedScores merge,
                                           const RowLabels<Kind>& labels, const Logit* logits)
      : scores_(objective),
        factor_(merge.factor),
        logits_(logits),
        label_(labels.first),
        label_logit_(labels.first_logit),
        above_label_(Kind::ranked ? next_above<Logit>(label_logit_) : 0.0f) {}

  // Vectors of which the first begins at class i, each other `apart` classes later, a power of two. `exists`: they are
  // of this row.
  template <int apart, int count>
  __device__ __forceinline__ void add(Packed<Logit, step> (&packed)[count], int i, bool exists) {
    // The vector that the label is in is gone along one by one, after the others: what has the same logit as one before
    // it is no new largest.
    const int to_label = label_ - i;
    const bool has_label = exists && static_cast<unsigned>(to_label) < count * apart && to_label % apart < step;
    const int without = has_label ? to_label / apart : exists ? count : 0;
    if (without < count) {
#pragma unroll
      for (int k = 0; k < count; k++) {
        if (k == without) packed[k] = count == 1 ? minus_infinities<Logit>() : packed[(k + 1) % count];
      }
    }
    add_others<apart>(packed, i, without);
    if (!__any_sync(kAllLanes, has_label)) return;
    const int first = i + without * apart;
#pragma unroll 1
    for (int j = 0; j < step; j++) {
      const bool is_wanted = has_label && first + j != label_;
      add(is_wanted ? number(logits_[first + j]) : 0.0f, first + j, is_wanted);
    }
  }

  // Class i alone, where `exists`.
  __device__ __forceinline__ void add(float x, int i, bool exists) {
    exists = exists && i != label_;
    raise_to(exists ? x : -INFINITY, exists);
    if (!exists) return;
    if constexpr (Kind::ranked) before_ += x > label_logit_ || (x == label_logit_ && i < label_);
    const float exponent = exponent_of(x), term = power_of_two(exponent);
    if constexpr (Kind::dense) add_target(x, exponent);
    if constexpr (Kind::detailed) {
      if (x == largest_ && x > -INFINITY) first_ = min(first_, i);
      if (looks_ && x == largest_) {
        looks_ = false;
        return;
      }
      dot_.add(term * finite(exponent));
    }
    sum_.add(term);
  }

  // For each lane those of all.
  __device__ __forceinline__ StreamedSums<Kind> sums() const {
    StreamedSums<Kind> sums = no_scores<StreamedSums<Kind>>();
    const float ratio = power_of_two(-off_);
    sums.max = max_;
    if constexpr (Kind::dense) {
      sums.sum = sum_.value() * ratio;
      sums.count = count_;
      sums.distance = dot_.value() - off_ * sums.count;
      return across_lanes(sums, kWarp, MergedScores{factor_});
    } else if constexpr (!Kind::detailed) {
      sums.sum = sum_.value() * ratio;
      return across_lanes(sums, kWarp, MergedScores{factor_});
    } else {
      sums.sum = across_lanes(sum_.value(), kWarp, Sum()) * ratio;
      sums.dot = (across_lanes(dot_.value(), kWarp, Sum()) * ratio - off_ * sums.sum) / factor_;
      sums.logit = largest_;
      sums.first = across_lanes(first_, kWarp, Minimum());
      if (sums.first == kNoClass) sums.sum -= 1;
      sums.before = across_lanes(before_, kWarp, Sum());
      return sums;
    }
  }

 private:
  // But the vector `without`.
  template <int apart, int count>
  __device__ __forceinline__ void add_others(const Packed<Logit, step> (&packed)[count], int i, int without) {
    Extremes<Logit> extremes;
#pragma unroll
    for (int k = 0; k < count; k++) extremes.add(packed[k]);
    const float largest = extremes.largest();
    Reach reach = Reach::within_three;
    if constexpr (Kind::capped || Kind::detailed || Kind::dense) {
      const float smallest = extremes.smallest();
      const bool near = smallest * factor_ > kLeastPower;
      reach = near ? scores_.reach(fmaxf(fabsf(largest), fabsf(smallest))) : Reach::any;
    }
    raise_to(largest, count > 1 || without == count);
    if (fabsf(power_) >= kLargestPower) reach = Reach::any;
    CountFrom<Logit> from_label;
    float sums[2] = {}, dots[2] = {};
    const auto add_terms = [&](auto may_be_infinite, auto exponent_of) {
#pragma unroll
      for (int k = 0; k < count; k++) {
        if (k == without) continue;
        float x[step], exponent[step], term[step];
        packed[k].numbers(x);
#pragma unroll
        for (int j = 0; j < step; j++) {
          exponent[j] = exponent_of(x[j]);
          term[j] = power_of_two(exponent[j]);
        }
        float of_step = sum_of(term);
        if constexpr (Kind::detailed) {
          const int first = i + k * apart;
          if (finds_ && !(of_step < 0.5f)) find_largest(first, x, term, of_step);
#pragma unroll
          for (int j = 0; j < step; j++) {
            dots[j % 2] = fmaf(term[j], may_be_infinite ? finite(exponent[j]) : exponent[j], dots[j % 2]);
          }
          if constexpr (Kind::ranked) {
            from_label.add(packed[k], first < label_ ? label_logit_ : above_label_);
          }
        }
        sums[k % 2] += of_step;
        if constexpr (Kind::dense && decltype(may_be_infinite)::value) {
#pragma unroll
          for (int j = 0; j < step; j++) add_target(x[j], exponent[j]);
        } else if constexpr (Kind::dense) {
          count_ += step;
#pragma unroll
          for (int j = 0; j < step; j++) dots[j % 2] += exponent[j];
        }
      }
    };
    if (reach == Reach::any) {
      add_terms(std::true_type{}, [&](float x) { return this->exponent_of(x); });
    } else {
      for_reach<Kind::capped>(reach, [&](auto within) {
        add_terms(std::false_type{}, [&](float x) { return scores_.exponent(within, x, factor_, power_); });
      });
    }
    sum_.add(sums[0] + sums[1]);
    if constexpr (Kind::detailed || Kind::dense) dot_.add(dots[0] + dots[1]);
    if constexpr (Kind::ranked) before_ += from_label.value();
  }

  // What the target of a class adds, which is none of one that is masked.
  __device__ __forceinline__ void add_target(float x, float exponent) {
    if (x == -INFINITY) return;
    count_ += 1;
    dot_.add(exponent);
  }

  // What a logit's term is a power of 2 of; and the same where it is taken times the term, which may be 0.
  __device__ __forceinline__ float exponent_of(float x) const { return fmaf(scores_.beyond(x, max_), factor_, off_); }
  static __device__ __forceinline__ float finite(float exponent) { return fmaxf(exponent, no_logits<float>().max); }

  // For logits of this lane up to `own`, before they are added. With details a lane that has one of the largest then
  // finds it, and one of these lanes leaves it out.
  __device__ __forceinline__ void raise_to(float own, bool exists) {
    finds_ = looks_ = false;
    const float largest = Kind::detailed ? across_lanes(own, kWarp, Maximum()) : own;
    if constexpr (Kind::detailed && Kind::capped) exists = __any_sync(kAllLanes, exists);
    const bool is_first = Kind::capped && exists && max_ == no_logits<float>().max;  // also −∞ has a score there
    if (!(largest > largest_ || is_first)) return;
    const float higher = scores_.of(largest), power = higher * factor_;
    const float off = fabsf(power) < kLargestPower ? scores_.exponent_of_score(higher, factor_, power) : 0.0f;
    // As a power of 2 this is 0 long before it is infinite, which times 0 would be NaN.
    const float lower = (max_ - higher) * factor_ + (off - off_), difference = fmaxf(lower, -1024.0f);
    const float ratio = power_of_two(difference);
    if constexpr (Kind::dense) dot_.add(weighted(count_, lower));
    if constexpr (Kind::detailed) {
      if (left_out_) {
        sum_.add(power_of_two(off_));
        dot_.add(off_ * power_of_two(off_));
      }
      dot_.add(weighted(sum_.value(), difference));
      dot_.scale(ratio);
      first_ = kNoClass;
      finds_ = own == largest && largest > -INFINITY;
      const unsigned holding = __ballot_sync(kAllLanes, finds_);
      left_out_ = looks_ = finds_ && __ffs(holding) - 1 == static_cast<int>(threadIdx.x) % kWarp;
    }
    sum_.scale(ratio);
    max_ = higher;
    largest_ = largest;
    power_ = power;
    off_ = off;
  }

  __device__ __forceinline__ void find_largest(int i, const float (&x)[step], float (&term)[step], float& of_step) {
    const int found = place_of(largest_, x);
    if (found == step) return;
    first_ = i + found;
    finds_ = false;
    if (!looks_) return;
#pragma unroll
    for (int j = 0; j < step; j++) term[j] = j == found ? 0.0f : term[j];
    of_step = sum_of(term);
  }

  Scores<Kind::capped> scores_;
  float factor_;
  const Logit* logits_;
  int label_;
  float label_logit_, above_label_;
  float max_ = no_logits<float>().max, largest_ = -INFINITY;  // the largest score, and its logit
  float power_ = 0, off_ = 0;        // of the largest score: what exponents are relative to, and its own exponent
  CompensatedSum<float> sum_, dot_;  // of terms, and times their exponents, or of exponents of classes with a target
  float count_ = 0;                  // of classes with a target
  int first_ = kNoClass, before_ = 0;
  bool left_out_ = false;  // the first of the largest logits is one of this lane's, and not in the sums
  bool finds_ = false, looks_ = false;
};

// What the targets of all classes of a row but its label add to its loss, of which none is clipped.
__device__ __forceinline__ float smoothed_losses(const RowObjective<float>& objective, const SmoothedSums& sums,
                                                 const RowSummary& summary) {
  const float of_largest = summary.log_sum + (summary.max - sums.max) * objective.inverse_temperature;
  return weighted(objective.smooth, weighted(sums.count, of_largest) - 0.693147181f * sums.distance);
}

// Block b takes rows b, b + gridDim.x, …
template <class Kind, class Logit>
__global__ void __launch_bounds__(kOptionThreads<Kind>, kOptionBlocks<Kind>)
    cross_entropy_options_streaming(CrossEntropyOptionRows<Logit, ClassIndices> rows) {
  static_assert(!Kind::dense || !(Kind::capped || Kind::detailed || Kind::weighted));
  constexpr int threads = kOptionThreads<Kind>, step = kPerVector<Logit>, apart = threads * step;
  for (int64_t row = blockIdx.x; row < rows.rows; row += gridDim.x) {
    if (is_masked(rows.weight_of(row))) {
      if (threadIdx.x == 0) write_results(rows, RowTeam{1, 0}, row, results_of_masked_row(rows));
      continue;
    }
    const RowObjective<float> objective(rows, row);
    const Logit* logits = rows.logits + row * rows.classes;
    const Span<Logit> span(objective.classes, logits);
    const RowLabels<Kind> labels(objective, logits, true);
    const MergedScores merge{objective.inverse_temperature * 1.44269504f};
    RunningScores<Kind, Logit> running(objective, merge, labels, logits);
    const auto add_steps = [&](auto count, int first, bool exists) {
      const int i = static_cast<int>(span.head) + first * step;
      Packed<Logit, step> packed[count];
#pragma unroll
      for (int k = 0; k < count; k++) {
        packed[k] = exists ? load<step, Caching::evict_first>(logits + i + k * apart) : minus_infinities<Logit>();
      }
      running.template add<apart>(packed, i, exists);
    };
    // Lanes of a warp go round equally often.
    const int lane = static_cast<int>(threadIdx.x) % kWarp, steps = static_cast<int>(span.steps);
    int first = static_cast<int>(threadIdx.x) - lane;
    for (; first + (kOptionSteps<Kind> - 1) * threads + kWarp <= steps; first += kOptionSteps<Kind> * threads) {
      add_steps(Count<kOptionSteps<Kind>>{}, first + lane, true);
    }
    for (; first + threads + kWarp <= steps; first += 2 * threads) add_steps(Count<2>{}, first + lane, true);
    for (; first < steps; first += threads) add_steps(Count<1>{}, first + lane, first + lane < steps);
    for (int64_t k = threadIdx.x - lane; k < span.edges; k += threads) {
      const bool exists = k + lane < span.edges;
      const int i = exists ? static_cast<int>(span.edge(k + lane)) : 0;
      running.add(exists ? number(logits[i]) : 0.0f, i, exists);
    }
    auto sums = across_warps<threads>(running.sums(), merge);
    sums.sum = where_a_number(labels.first_logit, sums.sum);
    const RowSummary summary(sums, labels.first_score, merge);
    float of_classes = 0;
    if constexpr (Kind::dense) {
      of_classes = smoothed_losses(objective, sums, summary);
    }
    if (threadIdx.x == 0) {
      write_results(rows, RowTeam{1, 0}, row, results_of_row(rows, objective, labels, sums, summary, of_classes));
    }
  }
}

// Rows that lanes of a warp hold are as fast there, and few rows would leave multiprocessors idle.
template <class Logit>
bool good_for_streaming(const CrossEntropyOptionRows<Logit, ClassIndices>& rows, const Device& device) {
  return !lanes_shape(rows, kLanesVectors) && rows.rows >= 4 * device.multiprocessors;
}

// cudaErrorNotSupported of rows that it is not for: with a gradient, or with smoothing and a clip, or more than a
// z-loss and a temperature (such are rare, and a release has a limit of size).
template <class Logit>
cudaError_t launch_streaming(cudaStream_t stream, const CrossEntropyOptionRows<Logit, ClassIndices>& rows) {
  const bool smoothed = rows.label_smoothing.given(), capped = rows.softcap.given();
  if (rows.gradient || rows.known_max) return cudaErrorNotSupported;
  if (smoothed && (rows.entropy || rows.class_weights || capped || rows.ceiling < INFINITY)) {
    return cudaErrorNotSupported;
  }
  const auto of_kind = [&](auto kind) {
    const int64_t blocks = rows.rows < 0x7fffffff ? rows.rows : 0x7fffffff;
    using Kind = decltype(kind);
    cross_entropy_options_streaming<Kind, Logit>
        <<<static_cast<unsigned>(blocks), kOptionThreads<Kind>, 0, stream>>>(rows);
    return cudaGetLastError();
  };
  if (smoothed) return of_kind(OptionKind<false, true, false>{});
  if (rows.entropy) {
    return capped ? of_kind(OptionKind<true, false, true>{}) : of_kind(OptionKind<false, false, true>{});
  }
  return capped ? of_kind(OptionKind<true, false, false>{}) : of_kind(OptionKind<false, false, false>{});
}

}  // namespace jaxloss::gpu
