// Divergences from a teacher's logits, of rows that are held in shared memory, the student's and the teacher's: what is
// made of a row, whichever threads hold it. Both are read once.
#pragma once

#include "gpu/divergence/terms.cuh"
#include "gpu/rows/held.cuh"
#include "gpu/rows/team.cuh"

namespace jaxloss::gpu {

// Sums of exponentials of a part of a row, relative to its largest logit: of those that are as large, and of others.
struct TemperedPart {
  float max, others, largest;

  __device__ __forceinline__ float others_relative_to(float higher, float factor) const {
    return max == higher ? others : (others + largest) * power_of_two((max - higher) * factor);
  }
  __device__ __forceinline__ float largest_relative_to(float higher) const { return max == higher ? largest : 0.0f; }
};
struct alignas(16) TemperedPair {
  TemperedPart student, teacher;
  float unused[2];
};

// How parts become the row's.
struct MergedParts {
  float factor;  // of a logit to a power of 2: log₂ e times the scale

  __device__ __forceinline__ TemperedPart operator()(const TemperedPart& a, const TemperedPart& b) const {
    const float max = fmaxf(a.max, b.max);
    return {max, a.others_relative_to(max, factor) + b.others_relative_to(max, factor),
            a.largest_relative_to(max) + b.largest_relative_to(max)};
  }
  __device__ __forceinline__ TemperedPair operator()(const TemperedPair& a, const TemperedPair& b) const {
    return {(*this)(a.student, b.student), (*this)(a.teacher, b.teacher), {}};
  }
};
__device__ __forceinline__ TemperedPart no_part() { return {no_logits<float>().max, 0, 0}; }

// One exponential a lane, as of `Merged`.
__device__ __forceinline__ TemperedPart across_lanes(const TemperedPart& part, int lanes, MergedParts merge) {
  const float max = across_lanes(part.max, lanes, Maximum());
  return {max, across_lanes(part.others_relative_to(max, merge.factor), lanes, Sum()),
          across_lanes(part.largest_relative_to(max), lanes, Sum())};
}
__device__ __forceinline__ TemperedPair across_lanes(const TemperedPair& pair, int lanes, MergedParts merge) {
  return {across_lanes(pair.student, lanes, merge), across_lanes(pair.teacher, lanes, merge), {}};
}

// Σ φ and Σ φ′.
struct alignas(8) DivergenceSums {
  float loss, total;
};
struct SumOfBoth {
  __device__ __forceinline__ DivergenceSums operator()(const DivergenceSums& a, const DivergenceSums& b) const {
    return {a.loss + b.loss, a.total + b.total};
  }
};
__device__ __forceinline__ DivergenceSums across_lanes(const DivergenceSums& sums, int lanes, SumOfBoth) {
  return {across_lanes(sums.loss, lanes, Sum()), across_lanes(sums.total, lanes, Sum())};
}

// What the lanes of a warp hold of a row's student and teacher.
template <class Logit>
__device__ __forceinline__ TemperedPair parts_of_held(const Held<Logit>& student, const Held<Logit>& teacher, int lanes,
                                                      float scale) {
  constexpr int step = kPerVector<Logit>;
  const auto part_from = [&](float largest) {
    TemperedPart part = no_part();
    part.max = fmaxf(across_lanes(largest, lanes, Maximum()), part.max);
    return part;
  };
  TemperedPair pair{part_from(student.largest()), part_from(teacher.largest()), {}};
  const TemperedTerms<float> exponentials(scale);
  const auto add = [&](const auto& x, TemperedPart& part) {
    TermsOfSome<float> terms(x, part.max, exponentials);
    if (terms.may_have_largest()) terms.count_largest(x, part.max, exponentials);
    part.others += terms.others;
    part.largest += terms.largest;
  };
  student.for_vectors_beside(teacher, [&](auto& of_student, auto& of_teacher, int) {
    float x[step], y[step];
    Packed<Logit, step>{{of_student}}.numbers(x);
    Packed<Logit, step>{{of_teacher}}.numbers(y);
    add(x, pair.student);
    add(y, pair.teacher);
  });
  student.for_edges_beside(teacher, [&](int, float of_student, float of_teacher) {
    const float x[1] = {of_student}, y[1] = {of_teacher};
    add(x, pair.student);
    add(y, pair.teacher);
  });
  const auto across = [&](const TemperedPart& part) {
    return TemperedPart{part.max, across_lanes(part.others, lanes, Sum()), across_lanes(part.largest, lanes, Sum())};
  };
  return {across(pair.student), across(pair.teacher), {}};
}

// All threads that share a row call it, and all of a warp, also for rows that are masked or not there, of which they
// hold nothing. `Team` knows which threads they are: see the two kinds of it.
template <class Divergence, class Logit, class Team>
__device__ __forceinline__ void divergence_of_held_row(
    const DivergenceRows<Divergence, Logit, TeacherLogits<Logit>>& rows, int64_t row, float weight, bool exists,
    const Held<Logit>& student, const Held<Logit>& teacher, const Team& team) {
  constexpr int step = kPerVector<Logit>;
  constexpr bool total_is_known = Divergence::total_is_of_teacher;
  const bool wanted = exists && !is_masked(weight);
  const float scale = wanted ? rows.scale.of(row) : 1.0f, parameter = wanted ? rows.parameter.of(row) : 0.0f;
  const MergedParts merge{scale * 1.44269504f};
  student.wait();
  const TemperedPair own = parts_of_held(student, teacher, team.lanes, scale);
  const TemperedPair parts = team.merged(own, TemperedPair{no_part(), no_part(), {}}, merge, wanted);
  const auto softmax = [&](const TemperedPart& part) { return softmax_of(part.max, part.others, part.largest, scale); };
  const DivergenceTerms<Divergence, Logit, TeacherLogits<Logit>> terms(parameter, softmax(parts.student),
                                                                       softmax(parts.teacher));

  const bool has_gradient = rows.gradient && wanted && weight != 0;
  const float factor = scale * weight;
  Logit* gradient = has_gradient ? rows.gradient + row * rows.classes : nullptr;
  DivergenceSums sums{0, 0};
  const auto gradient_of = [&](float p, float derivative) {
    return (total_is_known ? derivative : derivative - p * sums.total) * factor;
  };
  // Leaves p in y and φ′ in x, or the gradient.
  const auto visit = [&](auto& x, auto& y, auto adds, auto makes_gradient) {
    constexpr int count = std::extent_v<std::remove_reference_t<decltype(x)>>;
    float values[2] = {}, derivatives[2] = {}, d[count];
    terms.log_ratios(x, y, d);
#pragma unroll
    for (int j = 0; j < count; j++) {
      float p, value, derivative;
      terms(x[j], y[j], d[j], p, value, derivative);
      values[j % 2] += value;
      derivatives[j % 2] += derivative;
      x[j] = makes_gradient ? gradient_of(p, derivative) : derivative;
      y[j] = p;
    }
    if (adds) sums.loss += values[0] + values[1];
    if (adds && !total_is_known) sums.total += derivatives[0] + derivatives[1];
  };
  // Where shared memory has room for p and φ′ as they are, a second pass over them need not make them again.
  constexpr bool keeps = !total_is_known && sizeof(Logit) == 4;
  const auto for_row = [&](auto adds, auto makes_gradient) {
    student.for_vectors_beside(teacher, [&](uint4& of_student, uint4& of_teacher, int i) {
      float x[step], y[step];
      Packed<Logit, step>{{of_student}}.numbers(x);
      Packed<Logit, step>{{of_teacher}}.numbers(y);
      if (keeps && makes_gradient) {
#pragma unroll
        for (int j = 0; j < step; j++) x[j] = gradient_of(y[j], x[j]);
      } else {
        visit(x, y, adds, makes_gradient);
      }
      if (keeps && adds && has_gradient) of_student = pack<float>(x), of_teacher = pack<float>(y);
      if (makes_gradient && has_gradient) store<Logit, Team::caching>(gradient + i, x);
    });
    student.for_edges_beside(teacher, [&](int i, float of_student, float of_teacher) {
      float x[1] = {of_student}, y[1] = {of_teacher};
      visit(x, y, adds, makes_gradient);
      if (makes_gradient && has_gradient) gradient[i] = stored<Logit>(x[0]);
    });
  };
  for_row(std::true_type(), std::bool_constant<total_is_known>());
  sums = team.combined(sums, DivergenceSums{}, SumOfBoth(), wanted, !total_is_known);
  if constexpr (!total_is_known) {
    if (has_gradient) for_row(std::false_type(), std::true_type());
  }
  if (exists && !has_gradient) zero_gradient(rows, team.threads(), row, 0);
  if (!exists || !team.leads()) return;
  rows.loss[row] = wanted ? sums.loss : 0.0f;
  rows.max[row] = wanted ? terms.student.max : 0.0f;
  rows.log_sum[row] = wanted ? terms.student.log_sum : 0.0f;
  rows.teacher_max[row] = wanted ? terms.teacher.max : 0.0f;
  rows.teacher_log_sum[row] = wanted ? terms.teacher.log_sum : 0.0f;
  rows.total[row] = !wanted ? 0.0f : total_is_known ? -1.0f : sums.total;
}

}  // namespace jaxloss::gpu
