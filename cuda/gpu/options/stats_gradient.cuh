// The gradient of losses, log-sum-exps and entropies together, of rows with options but smoothing that are held in
// shared memory, from what each of the three is multiplied by: nothing has to be known of a row before, which is read
// once.
#pragma once

#include "gpu/options/held.cuh"

namespace jaxloss::gpu {

// As `cross_entropy_of_held_row`.
template <class Kind, class Logit, class Team>
__device__ __forceinline__ void stats_gradient_of_held_row(const CrossEntropyOptionRows<Logit, ClassIndices>& rows,
                                                           const RowObjective<float>& objective, int64_t row,
                                                           float weight, bool exists, const Held<Logit>& held,
                                                           const Team& team) {
  static_assert(Kind::detailed && !Kind::dense);
  constexpr int step = kPerVector<Logit>;
  const bool wanted = exists && !is_masked(weight);
  const Scores<Kind::capped> scores(objective);
  const float inverse_temperature = objective.inverse_temperature;
  const MergedScores merge{inverse_temperature * 1.44269504f};
  const RowLabels<Kind> labels(objective, held.logits, wanted);
  const int label = labels.first;
  held.wait();
  Extent extent;
  Reach reach;
  auto sums = sums_of_held<Kind>(held, team, objective, labels, merge, extent, reach);
  sums.sum = where_a_number(labels.first_logit, where_a_number(labels.second_logit, sums.sum));
  sums = team.merged(sums, no_scores<SumsOf<Kind>>(), merge, wanted);
  if (!wanted) {
    if (exists) zero_gradient(rows, team.threads(), row, 0);
    return;
  }

  const RowSummary summary(sums, labels.first_score, merge);
  const RowTotals totals(objective, labels, summary, 0);
  const float max = totals.max, log_sum = totals.log_sum, total = totals.total;

  // By the scores, which are the scaled logits times the temperature.
  const float of_loss = objective.valid ? weight : 0.0f;
  const StatsWeights<float> of_stats{rows.of_lse[row], rows.of_entropy[row] * inverse_temperature,
                                     summary.dot_over_sum};
  const float of_sum = exponential(-log_sum) * inverse_temperature, of_total = of_loss * total;
  const float largest_power = max * merge.factor, off = scores.exponent_of_score(max, merge.factor, largest_power);
  Logit* gradient = rows.gradient + row * rows.classes;
  const auto to_derivatives = [&](auto& x) {
    constexpr int count = sizeof(x) / sizeof(x[0]);
#pragma unroll
    for (int j = 0; j < count; j++) {
      float slope;
      const float beyond = scores.beyond(x[j], max, slope);
      x[j] = power_of_two(beyond * merge.factor) * of_sum * (of_total + of_stats.of(beyond)) * slope;
    }
  };
  if (reach != Reach::any && fabsf(largest_power) < kLargestPower) {
    // With exponents in place of scores, which are so many times as large.
    const float of_exponent = -0.693147181f * rows.of_entropy[row], of_mean = of_stats.of_entropy * of_stats.mean;
    const float of_all = of_total + of_stats.of_lse + of_mean, scale = of_sum * power_of_two(-off);
    for_reach<Kind::capped>(reach, [&](auto within) {
      held.for_vectors([&](const Packed<Logit, step>& packed, int i) {
        float x[step], slope[step];
        packed.numbers(x);
#pragma unroll
        for (int j = 0; j < step; j++) {
          const float exponent = scores.template exponent<Logit>(within, x[j], merge.factor, largest_power, slope[j]);
          x[j] = power_of_two(exponent) * (fmaf(exponent - off, of_exponent, of_all) * scale);
          if (Kind::capped) x[j] *= slope[j];
        }
        store<Logit, Team::caching>(gradient + i, x);
      });
    });
  } else {
    held.for_vectors([&](const Packed<Logit, step>& packed, int i) {
      float x[step];
      packed.numbers(x);
      to_derivatives(x);
      store<Logit, Team::caching>(gradient + i, x);
    });
  }
  held.for_edges([&](int i, float logit) {
    if (i == label) return;
    float x[1] = {logit};
    to_derivatives(x);
    gradient[i] = stored<Logit>(x[0]);
  });
  const auto store_label = [&](int i, float x, float score, float target, float others) {
    const float softmax = exponential(-totals.nll(score)), of_label = totals.of_label(score, target, others);
    const float derivative = of_label * of_loss + softmax * of_stats.of(score - max);
    gradient[i] = stored<Logit>(derivative * (scores.slope(x) * inverse_temperature));
  };
  labels.for_held(extent.has_label, labels.has_second && held.holds(labels.second), Smoothing<Kind>(objective),
                  totals.beyond_labels, store_label);
  if (objective.classes < rows.classes) zero_gradient(rows, team.threads(), row, objective.classes);
}

}  // namespace jaxloss::gpu
