// Cross entropy with options of rows that no threads hold: a team of threads a row, which it goes along twice where a
// gradient or a target of many classes is wanted, the second time mostly out of the caches.
#pragma once

#include "gpu/core/softmax.cuh"
#include "gpu/options/results.cuh"
#include "maths/cross_entropy_options.h"

namespace jaxloss::gpu {

// The first of the classes with the largest logit; NaNs are passed over.
template <class Real>
struct Best {
  Real logit;
  int index;

  static __device__ __forceinline__ Best of_nothing() { return {-static_cast<Real>(INFINITY), 0x7fffffff}; }
  __device__ __forceinline__ void add(Real x, int i) {
    if (x > logit || (x == logit && i < index)) *this = {x, i};
  }
};
struct First {};
template <class Real>
__device__ __forceinline__ Best<Real> across_lanes(Best<Real> best, int lanes, First) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    if (mask < lanes) best.add(from_lane_xor(best.logit, mask), from_lane_xor(best.index, mask));
  }
  return best;
}

// Σ e^(z − max) and Σ e^(z − max) (z − max) of logits without the first of the largest, whose terms are 1 and 0: what
// is small beside them keeps its digits.
template <class Real>
struct EntropySums {
  Real max, rest, dot;
  bool leads;  // one of the logits is left out
};

// Those of the logits seen so far.
template <class Real>
struct RunningEntropySums {
  Real max = no_logits<Real>().max;
  CompensatedSum<Real> rest, dot;
  bool leads = false;

  // Relative to a maximum that is another logit, or none that was seen here.
  __device__ __forceinline__ void relative_to(Real higher) {
    const Real sum = leads ? rest.value() + 1 : rest.value();
    if (sum != 0) {
      const Real ratio = Exponentials<Real>(higher).term(max);
      dot = CompensatedSum<Real>(weighted(ratio, dot.value() + (max - higher) * sum));
      rest = CompensatedSum<Real>(sum * ratio);
    }
    leads = false;
    max = higher;
  }
  template <int count>
  __device__ __forceinline__ void add(const Real (&z)[count]) {
    Real highest = z[0];
#pragma unroll
    for (int i = 1; i < count; i++) highest = Maximum()(highest, z[i]);
    bool found = true;
    if (highest > max) {
      relative_to(highest);
      leads = true;
      found = false;
    }
    const Exponentials<Real> exponentials(max);
    Real terms = 0, products = 0;
#pragma unroll
    for (int i = 0; i < count; i++) {
      const bool left_out = !found && z[i] == max;
      found |= left_out;
      const Real term = left_out ? Real(0) : exponentials.term(z[i]);
      terms += term;
      products += weighted(term, z[i] - max);
    }
    rest.add(terms);
    dot.add(products);
  }
};
// `has_first`: the logit that is left out here is the first of the largest of the row.
template <class Real>
__device__ __forceinline__ EntropySums<Real> across(const RowTeam& team, RunningEntropySums<Real> sums,
                                                    bool has_first) {
  const Real max = team.across(sums.max, Maximum());
  if (!has_first) sums.relative_to(max);
  return {max, team.across(sums.rest.value(), Sum()), team.across(sums.dot.value(), Sum()),
          max > no_logits<Real>().max};
}

// A row as a team goes along it. `Body` is called with a Count<n>, the first of n classes, their logits, these as the
// options make them, and their target without what labels add.
template <class Logit, class Target>
struct TeamRow {
  using Real = Accumulator<Logit>;
  static constexpr bool by_index = std::is_same_v<Target, ClassIndices>;
  static constexpr int step = kPerVector<Logit>;

  const CrossEntropyOptionRows<Logit, Target>& rows;
  const RowTeam& team;
  const RowObjective<Real>& objective;
  const int64_t offset;
  const bool dense;

  template <class Body>
  __device__ __forceinline__ void for_classes(Body body) const {
    const Logit* logits = rows.logits + offset;
    Logit* gradient = rows.gradient ? rows.gradient + offset : nullptr;
    const Logit* aligned_with = gradient ? gradient : logits;
    if constexpr (by_index) {
      along(Span<Logit>(objective.classes, logits, aligned_with), logits, logits, body);
    } else {
      const auto* target = rows.target.probability + offset;
      along(Span<Logit>(objective.classes, logits, aligned_with, target), logits, target, body);
    }
  }

 private:
  template <class Stored, class Body>
  __device__ __forceinline__ void along(const Span<Logit>& span, const Logit* logits, const Stored* target,
                                        Body body) const {
    for (int64_t k = team.lane; k < span.edges; k += team.lanes) {
      const int64_t i = span.edge(k);
      const Real x[1] = {number(logits[i])};
      const Real a[1] = {by_index ? Real(0) : static_cast<Real>(number(target[i]))};
      visit(Count<1>{}, i, x, a, body);
    }
    // Arithmetic in double has no registers to spare; labels that come here are few, or not aligned like the gradient.
    constexpr int most = by_index || sizeof(Logit) == 8 ? 1 : 2;
    for_batches<most, int64_t>(team.lane, span.steps, team.lanes, [&](auto batch, int64_t first) {
      Packed<Logit, step> packed[batch];
      [[maybe_unused]] Packed<Stored, step> targets[batch];
#pragma unroll
      for (int k = 0; k < batch; k++) {
        const int64_t i = span.start_of(first + k * team.lanes);
        packed[k] = load<step, Caching::normal>(logits + i);
        if constexpr (!by_index) targets[k] = load<step, Caching::normal>(target + i);
      }
#pragma unroll
      for (int k = 0; k < batch; k++) {
        Real x[step], a[step] = {};
        packed[k].numbers(x);
        if constexpr (!by_index) targets[k].numbers(a);
        visit(Count<step>{}, span.start_of(first + k * team.lanes), x, a, body);
      }
    });
  }

  template <int count, class Body>
  __device__ __forceinline__ void visit(Count<count> size, int64_t first, const Real (&x)[count],
                                        const Real (&a)[count], Body body) const {
    Real z[count], target[count];
#pragma unroll
    for (int j = 0; j < count; j++) {
      z[j] = objective.logit(x[j]);
      target[j] = (z[j] == -static_cast<Real>(INFINITY) ? Real(0) : objective.smooth) + objective.hard * a[j];
      if (dense && objective.class_weights) target[j] *= objective.class_weights[first + j];
    }
    body(size, first, x, z, a, target);
  }
};

template <class Logit>
__device__ __forceinline__ void store_numbers(Logit* to, const Accumulator<Logit> (&x)[1]) {
  *to = stored<Logit>(x[0]);
}
template <class Logit, int count>
__device__ __forceinline__ void store_numbers(Logit* to, const Accumulator<Logit> (&x)[count]) {
  store<Logit>(to, x);
}

// Teams take rows in turn; threads of a warp go round equally often, for they shuffle. Of a masked row nothing is
// read.
template <class Logit, class Target>
__global__ void __launch_bounds__(kTeamThreads, sizeof(Logit) == 8 ? 1 : 2)
    cross_entropy_with_options(CrossEntropyOptionRows<Logit, Target> rows, int lanes) {
  using Real = Accumulator<Logit>;
  constexpr bool by_index = std::is_same_v<Target, ClassIndices>;
  const Real nan = static_cast<Real>(NAN);
  const RowTeam team{lanes, static_cast<int>(threadIdx.x) & (lanes - 1)};
  const int64_t teams_a_block = kTeamThreads / lanes, teams = gridDim.x * teams_a_block;
  double sum_of_losses = 0;
  for (int64_t first = blockIdx.x * teams_a_block; first < rows.rows; first += teams) {
    const int64_t own = first + threadIdx.x / lanes;
    const bool exists = own < rows.rows;
    const int64_t row = exists ? own : rows.rows - 1;
    const Real weight = rows.row_weight.of(row);
    const bool reads = exists && !is_masked(weight);
    RowObjective<Real> objective(rows, row);
    if (!reads) objective.classes = 0;  // the team goes along nothing, but takes part in every exchange
    const int64_t offset = row * rows.classes;
    const TeamRow<Logit, Target> along{rows, team, objective, offset, !by_index || rows.label_smoothing.given()};
    const bool valid = objective.valid;
    const int no_rank = static_cast<int>(rows.smoothed_classes);

    Real label_logit[2] = {0, 0}, label_target[2] = {0, 0}, compared_logit = 0;
#pragma unroll
    for (int which = 0; which < 2; which++) {
      if (!reads || !objective.holds(which)) continue;
      const Real x = number(rows.logits[offset + objective.label[which]]);
      label_logit[which] = objective.label_logit(x);
      label_target[which] = objective.label_target(which);
      if (which == 0) compared_logit = objective.moves_label ? objective.logit(x) : label_logit[0];
    }
    // Classes' logits as the loss sees them.
    const auto with_label = [&](int64_t i, auto& z) {
      if constexpr (by_index) {
        constexpr int count = sizeof(z) / sizeof(z[0]);
        if (!objective.moves_label || static_cast<uint64_t>(objective.label[0] - i) >= count) return;
#pragma unroll
        for (int j = 0; j < count; j++) z[j] = i + j == objective.label[0] ? label_logit[0] : z[j];
      }
    };

    Real max, log_sum, total, beyond_labels = 0, of_loss = weight;
    StatsWeights<Real> of_stats{};
    RowResults<Real> results{};
    if (rows.known_max) {
      max = reads ? rows.known_max[row] : Real(0);
      log_sum = reads ? rows.known_log_sum[row] : Real(0);
      total = reads ? rows.known_total[row] : Real(0);
    } else {
      const bool tracks_largest = !by_index || rows.entropy || rows.of_entropy;
      RunningEntropySums<Real> running_entropy;
      RunningSoftmax<Real> running;
      EntropySums<Real> sums{};
      CompensatedSum<Real> target_sum;
      Best<Real> best = Best<Real>::of_nothing();
      int before = 0;
      along.for_classes([&](auto count, int64_t i, const auto&, auto& z, const auto&, const auto& target) {
        if (along.dense) {
          Real of_classes = 0;
#pragma unroll
          for (int j = 0; j < count; j++) of_classes += target[j];
          target_sum.add(of_classes);
        }
        if (!tracks_largest) {
          Real others[count];
#pragma unroll
          for (int j = 0; j < count; j++) others[j] = z[j];
          if (static_cast<uint64_t>(objective.label[0] - i) < count) {
#pragma unroll
            for (int j = 0; j < count; j++) {
              if (i + j == objective.label[0]) others[j] = -static_cast<Real>(INFINITY);
            }
          }
          running.add(others);
          return;
        }
#pragma unroll
        for (int j = 0; j < count; j++) {
          const int index = static_cast<int>(i) + j;
          best.add(z[j], index);
          before += z[j] > compared_logit || (z[j] == compared_logit && index < objective.label[0]);
        }
        with_label(i, z);
        running_entropy.add(z);
      });
      Real sum;
      if (tracks_largest) {
        const int own = best.index;
        best = team.across(best, First());
        before = team.across(before, Sum());
        bool has_first = own == best.index;
        if (objective.moves_label) {  // then the largest that is predicted is not the largest of the softmax
          const Best<Real> lane = team.across(Best<Real>{running_entropy.max, team.lane}, First());
          has_first = lane.index == team.lane;
        }
        sums = across(team, running_entropy, running_entropy.leads && has_first);
        max = sums.max;
        sum = (sums.leads ? sums.rest + 1 : sums.rest) + (max - max);  // NaN of an infinite one
        log_sum = log_of_sum(sum, sums.rest, sums.leads);
      } else {
        const LabelledSums<Real> labelled(team.across(running.sums(), Merged()), reads && objective.holds(0),
                                          label_logit[0]);
        max = labelled.max;
        sum = labelled.sum;
        log_sum = labelled.log_sum;
      }
      const Real lse = max + log_sum;
      beyond_labels =
          (along.dense ? team.across(target_sum.value(), Sum()) : Real(0)) + 2 * weighted(objective.z_loss, lse);
      total = beyond_labels + (label_target[0] + label_target[1]);
      if (rows.of_lse) {
        of_loss = valid ? weight : Real(0);
        of_stats = {rows.of_lse[row], rows.of_entropy[row], sums.dot / sum};
      }
      results.loss = weighted(objective.z_loss, lse * lse);
      results.entropy = log_sum - sums.dot / sum;
      results.predicted = best.index < rows.classes ? best.index : 0;
      results.rank = by_index && objective.holds(0) ? before : no_rank;
    }

    const bool of_loss_alone = weight != 0 && (valid || rows.known_max);
    const bool has_gradient = rows.gradient && reads && (of_loss_alone || rows.of_lse);
    const bool has_sums = along.dense && (rows.loss || rows.sums);
    CompensatedSum<Real> losses, nlls;
    if (has_gradient || has_sums) {
      const Exponentials<Real> exponentials(max);
      const Real scale = total * exponential(-log_sum);
      // Where the softmax is near 1: its total (softmax − 1) + (total − target), in which nothing cancels.
      const Real of_largest = total * exponential_minus_one(-log_sum);
      const Real largest = sure_maximum(max, exponential(log_sum));
      along.for_classes([&](auto count, int64_t i, const auto& x, auto& z, const auto& a, const auto& target) {
        with_label(i, z);
        if (has_sums) {
          Real loss = 0, nll = 0;
#pragma unroll
          for (int j = 0; j < count; j++) {
            const Real of_class = log_sum - (z[j] - max);
            loss += weighted(target[j], at_most(of_class, rows.ceiling));
            if (!by_index) nll += weighted(a[j], of_class);
          }
          losses.add(loss);
          nlls.add(nll);
        }
        if (!has_gradient) return;
        Real derivative[count];
#pragma unroll
        for (int j = 0; j < count; j++) {
          const Real b = along.dense ? target[j] : Real(0);
          derivative[j] = exponentials.term(z[j]) * scale - b;
          if (!by_index) derivative[j] = z[j] == largest ? of_largest + (total - b) : derivative[j];
        }
        if constexpr (by_index) {
#pragma unroll
          for (int which = 0; which < 2; which++) {
            if (static_cast<uint64_t>(objective.label[which] - i) >= count) continue;
            const bool same = objective.label[0] == objective.label[1];
            const Real of_labels = same ? label_target[0] + label_target[1] : label_target[which];
            const Real of_other = same ? Real(0) : label_target[1 - which];
            const Real missing = exponential_minus_one((label_logit[which] - max) - log_sum);
            const Real p = exponentials.term(label_logit[which]) * exponential(-log_sum);
#pragma unroll
            for (int j = 0; j < count; j++) {
              const Real of_class = along.dense ? target[j] : Real(0), b = of_class + of_labels;
              const Real others = rows.known_max ? total - b : (beyond_labels - of_class) + of_other;
              if (i + j == objective.label[which]) derivative[j] = label_derivative(p, missing, total, b, others);
            }
          }
        }
#pragma unroll
        for (int j = 0; j < count; j++) {
          const Real slope = objective.slope(x[j]), softmax = exponential((z[j] - max) - log_sum);
          derivative[j] = rows.of_lse ? (derivative[j] * of_loss + softmax * of_stats.of(z[j] - max)) * slope
                                      : derivative[j] * (weight * slope);
        }
        store_numbers<Logit>(rows.gradient + offset + i, derivative);
      });
    }
    Real loss = has_sums ? team.across(losses.value(), Sum()) : Real(0);
    Real nll = has_sums ? team.across(nlls.value(), Sum()) : Real(0);
    // Not before: the gradient may take the place of logits that other threads read for these sums.
    if (exists) zero_gradient(rows, team, row, has_gradient ? objective.classes : 0);
    if (!rows.loss && !rows.sums) continue;

#pragma unroll
    for (int which = 0; which < 2; which++) {
      const Real of_label = log_sum - (label_logit[which] - max);
      loss += weighted(label_target[which], at_most(of_label, rows.ceiling));
      nll += weighted(objective.share[which], of_label);
    }
    results.loss = valid ? where_a_number(log_sum, results.loss + loss) : nan;
    results.nll = valid ? where_a_number(log_sum, nll) : nan;
    results.max = max;
    results.log_sum = log_sum;
    if (!reads) results = results_of_masked_row(rows);
    if (rows.sums) {
      if (exists && team.lane == 0) sum_of_losses += results.loss;
    } else if (exists) {
      write_results(rows, team, row, results);
    }
  }
  if (!rows.sums) return;
  sum_of_losses = across_block<kTeamThreads>(sum_of_losses, Sum());
  if (threadIdx.x == 0) rows.sums[blockIdx.x] = static_cast<Real>(sum_of_losses);
}

// A thread for some four vectors of a short row, then a warp for up to 32 vectors a thread: it exchanges sums without
// waiting for others. (A block for every row beyond 128 vectors took twelve times as long as a copy at bf16
// [65536, 1024].)
template <class Logit>
int option_lanes(int64_t classes) {
  const int64_t vectors = classes / kPerVector<Logit> + 1;
  if (vectors > 32 * kWarp) return kTeamThreads;
  int lanes = 1;
  while (lanes < kWarp && 4 * lanes < vectors) lanes *= 2;
  return lanes;
}

template <class Logit, class Target>
cudaError_t launch_teams(cudaStream_t stream, const CrossEntropyOptionRows<Logit, Target>& rows) {
  const int lanes = option_lanes<Logit>(rows.classes);
  const int64_t teams_a_block = kTeamThreads / lanes;
  const int64_t blocks = rows.sums ? rows.parts : (rows.rows + teams_a_block - 1) / teams_a_block;
  if (blocks == 0) return cudaSuccess;
  if (rows.sums && blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  cross_entropy_with_options<<<static_cast<unsigned>(blocks < 0x7fffffff ? blocks : 0x7fffffff), kTeamThreads, 0,
                               stream>>>(rows, lanes);
  return cudaGetLastError();
}

}  // namespace jaxloss::gpu
