// What is made of a row of class indices with options, once its classes are summed.
#pragma once

#include "gpu/options/scores.cuh"

namespace jaxloss::gpu {

// The labels of a row, and what is known of them.
template <class Kind>
struct RowLabels {
  bool has_first, has_second;  // in the row
  int first, second;           // −1 if not
  float first_logit, second_logit, first_score, second_score;
  float first_target, second_target, first_smoothed;  // smoothed: what smoothing adds to the target of the first

  template <class Logit>
  __device__ __forceinline__ RowLabels(const RowObjective<float>& objective, const Logit* logits, bool wanted)
      : has_first(wanted && objective.holds(0)), has_second(wanted && objective.holds(1)) {
    first = has_first ? static_cast<int>(objective.label[0]) : -1;
    second = has_second ? static_cast<int>(objective.label[1]) : -1;
    first_logit = has_first ? number(logits[first]) : -INFINITY;
    second_logit = has_second ? number(logits[second]) : -INFINITY;
    const Scores<Kind::capped> scores(objective);
    first_score = has_first ? scores.of(first_logit) - objective.margin : -INFINITY;
    second_score = second == first ? first_score : scores.of(second_logit);
    first_target = has_first ? objective.label_target(0) : 0.0f;
    second_target = has_second ? objective.label_target(1) : 0.0f;
    first_smoothed = has_first ? Smoothing<Kind>(objective).target(first, first_logit) : 0.0f;
  }

  __device__ __forceinline__ bool same() const { return first == second; }

  // store(i, logit, score, target, others) of the labels' classes that this thread holds: what they have of the target,
  // and what is left of its total, of which `beyond_labels` is no label's.
  template <class Store>
  __device__ __forceinline__ void for_held(bool holds_first, bool holds_second, const Smoothing<Kind>& smoothing,
                                           float beyond_labels, Store store) const {
    const float of_first = first_target + first_smoothed;
    if (has_second && !same() && holds_second) {
      const float smoothed = smoothing.target(second, second_logit);
      store(second, second_logit, second_score, second_target + smoothed, (beyond_labels - smoothed) + of_first);
    }
    if (holds_first) {
      store(first, first_logit, first_score, of_first + (same() ? second_target : 0.0f),
            beyond_labels + (same() ? 0.0f : second_target));
    }
  }
};

// What the derivatives of a row's loss are made of.
struct RowTotals {
  float inverse_temperature, max, log_sum;
  float lse, beyond_labels, total;  // of the target; beyond_labels: what is no label's, and what the z-loss adds

  template <class Kind>
  __device__ __forceinline__ RowTotals(const RowObjective<float>& objective, const RowLabels<Kind>& labels,
                                       const RowSummary& summary, float target_of_others)
      : inverse_temperature(objective.inverse_temperature), max(summary.max), log_sum(summary.log_sum) {
    lse = max * inverse_temperature + log_sum;
    beyond_labels = 2 * weighted(objective.z_loss, lse);
    if constexpr (Kind::dense) beyond_labels += target_of_others;
    total = beyond_labels + ((labels.first_target + labels.first_smoothed) + labels.second_target);
  }

  // −log of the softmax of a score.
  __device__ __forceinline__ float nll(float score) const { return log_sum - (score - max) * inverse_temperature; }
  // With respect to the scaled logit of a label; the target is that of its class, and `others` what is left of the
  // total.
  __device__ __forceinline__ float of_label(float score, float target, float others) const {
    const float of_score = nll(score);
    return label_derivative(exponential(-of_score), exponential_minus_one(-of_score), total, target, others);
  }
};

// `of_classes`: the losses of all classes with what smoothing gives them of the target, but the labels'.
template <class Kind, class Sums, class Logit>
__device__ __forceinline__ RowResults<float> results_of_row(const CrossEntropyOptionRows<Logit, ClassIndices>& rows,
                                                            const RowObjective<float>& objective,
                                                            const RowLabels<Kind>& labels, const Sums& sums,
                                                            const RowSummary& summary, float of_classes) {
  const float max = summary.max, log_sum = summary.log_sum, inverse_temperature = objective.inverse_temperature;
  const float lse = max * inverse_temperature + log_sum;
  const auto of_score = [&](float score) { return log_sum - (score - max) * inverse_temperature; };
  const float of_label = labels.has_first ? of_score(labels.first_score) : 0.0f;
  const float of_second = labels.has_second ? of_score(labels.second_score) : 0.0f;
  float loss = of_classes + weighted(objective.z_loss, lse * lse);
  loss += weighted(labels.first_target + labels.first_smoothed, at_most(of_label, rows.ceiling)) +
          weighted(labels.second_target, at_most(of_second, rows.ceiling));
  const float nll = weighted(objective.share[0], of_label) + weighted(objective.share[1], of_second);
  RowResults<float> results = results_of_masked_row(rows);
  results.loss = objective.valid ? where_a_number(log_sum, loss) : NAN;
  results.nll = objective.valid ? where_a_number(log_sum, nll) : NAN;
  results.max = max * inverse_temperature;
  results.log_sum = log_sum;
  if constexpr (Kind::detailed) {
    results.entropy = log_sum - summary.dot_over_sum * inverse_temperature;
    const float label_logit = labels.first_logit;
    const bool label_leads = label_logit > -INFINITY &&
                             (label_logit > sums.logit || (label_logit == sums.logit && labels.first < sums.first));
    const int predicted = label_leads ? labels.first : sums.first;
    results.predicted = predicted == kNoClass ? 0 : predicted;
    if (labels.has_first) results.rank = sums.before;
  }
  return results;
}

}  // namespace jaxloss::gpu
