// Cross entropy with options and class indices, of rows that are held in shared memory: what is made of a row,
// whichever threads hold it. A row is read once, and its gradient is written once.
//
// Each thread copies what it holds of a row at once, and goes along that in loops: with options the code of a step is
// so long that, unrolled over registers, it would not fit the caches of instructions (6 copies of bf16 [7000, 151936]
// with a softcap, on an H200).
#pragma once

#include "gpu/options/row.cuh"
#include "gpu/rows/held.cuh"

namespace jaxloss::gpu {

// Calls fix(j) if the j-th class of a step of `count` from i on is that class.
template <int count, class Fix>
__device__ __forceinline__ void if_in_step(int i, int of_class, Fix fix) {
  if (static_cast<unsigned>(of_class - i) >= count) return;
#pragma unroll
  for (int j = 0; j < count; j++) {
    if (i + j == of_class) fix(j);
  }
}

// Where in a step the first such logit is; `count` if there is none.
template <int count>
__device__ __forceinline__ int place_of(float wanted, const float (&x)[count]) {
  int place = count;
#pragma unroll
  for (int j = count - 1; j >= 0; j--) place = x[j] == wanted ? j : place;
  return place;
}

template <int count>
__device__ __forceinline__ float sum_of(const float (&term)[count]) {
  float sums[2] = {};
#pragma unroll
  for (int j = 0; j < count; j++) sums[j % 2] += term[j];
  return sums[0] + sums[1];
}

// The sums of what the lanes of a warp hold of a row, without its first label, for each of them. `reach` is not `any`
// where of what this thread holds no class is masked (for an entropy, by a finite number with an infinite exponent
// either), a softcap is not far exceeded, and no logit is so large that its exponent would be far off: it is so of
// most, and what needs no care for that is shorter.
template <class Kind, class Logit, class Team>
__device__ __forceinline__ SumsOf<Kind> sums_of_held(const Held<Logit>& held, const Team& team,
                                                     const RowObjective<float>& objective,
                                                     const RowLabels<Kind>& labels, MergedScores merge, Extent& extent,
                                                     Reach& reach) {
  constexpr int step = kPerVector<Logit>;
  const Scores<Kind::capped> scores(objective);
  const Smoothing<Kind> smoothing(objective);
  const int label = labels.first;
  const float label_logit = labels.first_logit;
  // The label's is then a logit that adds nothing to a sum: −∞ of logits that are their scores.
  extent = held.extent(label, Kind::capped ? NAN : -INFINITY);
  // The score of the least logit is finite under a softcap: where there is no logit, there is no such score.
  const bool has_none = Kind::capped && extent.largest == -INFINITY && extent.smallest == INFINITY;
  const float own_largest = has_none ? -INFINITY : scores.of(extent.largest);
  const float largest_score = fmaxf(across_lanes(own_largest, team.lanes, Maximum()), no_logits<float>().max);
  const float largest_logit = Kind::detailed ? across_lanes(extent.largest, team.lanes, Maximum()) : 0.0f;
  const float most = fmaxf(fabsf(extent.largest), fabsf(extent.smallest)), power = largest_score * merge.factor;
  const bool near = Kind::detailed ? extent.smallest * merge.factor > kLeastPower
                                   : kPlainOptions<Kind> || extent.smallest > -INFINITY;
  reach = near && fabsf(power) < kLargestPower ? scores.reach(most) : Reach::any;
  auto sums = no_scores<SumsOf<Kind>>();
  sums.max = largest_score;
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
    const int found = place_of(largest_logit, x);
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
  const auto add = [&](auto& x, auto& target, int i) {
    constexpr int count = sizeof(x) / sizeof(x[0]);
    float beyond[count], term[count];
#pragma unroll
    for (int j = 0; j < count; j++) {
      beyond[j] = scores.beyond(x[j], largest_score);
      term[j] = power_of_two(beyond[j] * merge.factor);
    }
    if_in_step<count>(i, label, [&](int j) { term[j] = beyond[j] = target[j] = 0; });
    float of_step = sum_of(term);
    if constexpr (Kind::detailed) {
      leave_out_largest(i, x, term, of_step);
#pragma unroll
      for (int j = 0; j < count; j++) {
        dots[j % 2] += term[j] * fmaxf(beyond[j], no_logits<float>().max);  // infinitely far, and times 0
        if (Kind::ranked) before += i + j != label && (x[j] > label_logit || (x[j] == label_logit && i + j < label));
      }
    }
    parts[0] += of_step;
#pragma unroll
    for (int j = 0; j < count; j++) {
      if (Kind::dense) step_targets += !Kind::capped && x[j] == -INFINITY ? 0.0f : target[j];
    }
  };
  if (reach != Reach::any) {
    CountFrom<Logit> from_label;
    for_reach<Kind::capped>(reach, [&](auto within) {
      held.for_vectors([&](const Packed<Logit, step>& packed, int i) {
        float x[step], exponent[step], term[step];
        [[maybe_unused]] float target[step];
        if constexpr (Kind::weighted) smoothing.targets(i, target);  // first, for they come from far
        packed.numbers(x);
#pragma unroll
        for (int j = 0; j < step; j++) {
          exponent[j] = scores.exponent(within, x[j], merge.factor, power);
          term[j] = power_of_two(exponent[j]);
        }
        if constexpr (Kind::detailed || Kind::capped) {
          if_in_step<step>(i, label, [&](int of_label) {
            term[of_label] = exponent[of_label] = 0;
#pragma unroll
            for (int j = 0; j < step; j++) before += Kind::ranked && j < of_label && x[j] == label_logit;
          });
        }
        if constexpr (Kind::detailed) {
          float of_step = sum_of(term);
          leave_out_largest(i, x, term, of_step);
          parts[0] += of_step;
          if constexpr (Kind::ranked) from_label.add(packed, i + step <= label ? label_logit : above_label);
#pragma unroll
          for (int j = 0; j < step; j++) dots[j % 2] = fmaf(term[j], exponent[j], dots[j % 2]);
        }
        if constexpr (!Kind::detailed) {
#pragma unroll
          for (int j = 0; j < step; j++) parts[j % 4] += term[j];
        }
        if constexpr (Kind::dense) {
          if constexpr (Kind::weighted) {
            step_targets += sum_of(target);
          } else {
            step_targets += step * smoothing.smooth;
          }
        }
      });
    });
    if constexpr (Kind::dense) {
      if (extent.has_label && held.in_steps(label)) step_targets -= smoothing.target(label, 0);
    }
    before += from_label.value();
    // What all exponents are off by is that of the largest logit.
    const float off = scores.exponent_of_score(largest_score, merge.factor, power), ratio = power_of_two(-off);
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
    if constexpr (Kind::ranked) sums.before = across_lanes(before, team.lanes, Sum());
  }
  if constexpr (Kind::dense) sums.target = across_lanes(step_targets, team.lanes, Sum());
  return sums;
}

// All threads that share a row call it, and all of a warp, also for rows that are masked or not there, of which they
// hold nothing. `Team` knows which threads they are: see the two kinds of it.
template <class Kind, bool kGradient, class Logit, class Team>
__device__ __forceinline__ void cross_entropy_of_held_row(const CrossEntropyOptionRows<Logit, ClassIndices>& rows,
                                                          const RowObjective<float>& objective, int64_t row,
                                                          float weight, bool exists, const Held<Logit>& held,
                                                          const Team& team) {
  constexpr int step = kPerVector<Logit>;
  const bool wanted = exists && !is_masked(weight);
  const Scores<Kind::capped> scores(objective);
  const Smoothing<Kind> smoothing(objective);
  const bool smooths = Kind::dense && smoothing.smooth != 0;
  const float inverse_temperature = objective.inverse_temperature;
  const MergedScores merge{inverse_temperature * 1.44269504f};
  const RowLabels<Kind> labels(objective, held.logits, wanted);
  const int label = labels.first;
  held.wait();
  Extent extent;
  Reach reach;
  auto sums = sums_of_held<Kind>(held, team, objective, labels, merge, extent, reach);
  // Where a label is NaN so is its row: and so the labels' logits are there before any thread may write in their
  // places.
  sums.sum = where_a_number(labels.first_logit, where_a_number(labels.second_logit, sums.sum));
  sums = team.merged(sums, no_scores<SumsOf<Kind>>(), merge, wanted);

  const RowSummary summary(sums, labels.first_score, merge);
  float target_of_others = 0;
  if constexpr (Kind::dense) target_of_others = sums.target;
  const RowTotals totals(objective, labels, summary, target_of_others);
  const float max = totals.max, log_sum = totals.log_sum, total = totals.total;

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
      if_in_step<count>(i, label, [&](int j) { target[j] = 0; });
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
    // The label's replaced logit is taken for a loss a little beyond all that this thread has, or that is clipped, and
    // what it adds is subtracted again: so it must not be large.
    const bool label_in_steps = Kind::dense && extent.has_label && held.in_steps(label);
    const float own_most = fmaxf(log_sum + (max - scores.of(extent.smallest)) * inverse_temperature, 0.0f);
    const float own_ceiling = fminf(ceiling, fmaf(own_most, 1.001f, 1.0f));
    if (reach != Reach::any && fabsf(largest_power) < kLargestPower && (!smooths || own_ceiling < 1e4f)) {
      const float smooth_of_logits = smoothing.smooth * to_logits, of_exponent = 0.693147181f;
      const float log_sum_off = fmaf(off, of_exponent, log_sum);
      // A loss is log_sum_off − of_exponent · exponent, and clipped where the exponent is less than this.
      const float least_exponent = (log_sum_off - own_ceiling) * 1.44269504f;
      float exponents[2] = {};
      int steps = 0;
      for_reach<Kind::capped>(reach, [&](auto within) {
        held.for_vectors([&](const Packed<Logit, step>& packed, int i) {
          float x[step], loss[step], slope[step], target[step];
          if constexpr (Kind::weighted) smoothing.targets(i, target);
          packed.numbers(x);
#pragma unroll
          for (int j = 0; j < step; j++) {
            const float exponent = scores.template exponent<Logit>(within, x[j], merge.factor, largest_power, slope[j]);
            if (Kind::dense) loss[j] = exponent;
            x[j] = power_of_two(exponent) * scale_of_simple;
            if (Kind::dense) x[j] -= Kind::weighted ? target[j] * to_logits : smooth_of_logits;
            if (Kind::capped) x[j] *= slope[j];
          }
          if (Kind::dense && smooths) {
            steps++;
#pragma unroll
            for (int j = 0; j < step; j++) {
              const float bounded = fmaxf(loss[j], least_exponent);
              if constexpr (Kind::weighted) {
                losses[j % 2] = fmaf(target[j], fmaf(bounded, -of_exponent, log_sum_off), losses[j % 2]);
              } else {
                exponents[j % 2] += bounded;
              }
            }
          }
          if (has_gradient) store<Logit, Team::caching>(gradient + i, x);
        });
      });
      const float of_exponents = of_exponent * (exponents[0] + exponents[1]);
      if (!Kind::weighted && smooths) losses[0] += smoothing.smooth * (step * steps * log_sum_off - of_exponents);
      if (label_in_steps && smooths) {
        losses[0] -= smoothing.target(label, 0) * fmaf(least_exponent, -of_exponent, log_sum_off);
      }
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
    if (has_gradient) {
      labels.for_held(extent.has_label, labels.has_second && held.holds(labels.second), smoothing, totals.beyond_labels,
                      [&](int i, float x, float score, float b, float others) {
                        const float derivative = totals.of_label(score, b, others);
                        gradient[i] = stored<Logit>(derivative * (scores.slope(x) * to_logits));
                      });
    }
  }
  float loss = 0;
  if constexpr (Kind::dense) {
    loss = team.combined(losses[0] + losses[1], 0.0f, Sum(), wanted && smooths, false);
  }
  if constexpr (kGradient) {  // not before: it may take the place of logits that other lanes read for the loss
    const int64_t written = has_gradient ? objective.classes : 0;
    if (exists && written < rows.classes) zero_gradient(rows, team.threads(), row, written);
  }
  if (!exists || !team.leads()) return;

  const auto results =
      wanted ? results_of_row(rows, objective, labels, sums, summary, loss) : results_of_masked_row(rows);
  write_results(rows, RowTeam{1, 0}, row, results);
}

}  // namespace jaxloss::gpu
