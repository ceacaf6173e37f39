// Divergences of rows that no threads hold: a team of threads a row, from one lane to a block, which it reads twice or
// three times.
#pragma once

#include "gpu/divergence/terms.cuh"

namespace jaxloss::gpu {

// ---- teams ----------------------------------------------------------------------------------------------------------

// Of a block for a row. Rows of 16 bits take fewer steps, and less of them is in the caches still when they are read
// again. (H200, reads and copies of KL from logits: bf16 [16384, 32000] 2.31, 1.58 by 256 threads and 2.68, 1.69 by
// 512; f32 [8192, 32000] 2.00, 1.51 and 1.95, 1.38.)
template <class Rows>
constexpr int kBlockThreads = sizeof(*Rows::logits) == 2 ? 256 : 512;
constexpr int kLaneThreads = 128;

// The whole block on one row.
template <int threads_>
struct BlockTeam {
  int thread;
  static constexpr int threads = threads_;
  template <class Real, class Combine>
  __device__ __forceinline__ Real combined(Real value, Combine combine) const {
    return across_block<threads>(value, combine);
  }
};

// Some lanes of a warp, the others of which are teams of the same size and call `combined` with it.
struct LaneTeam {
  int thread, threads;
  template <class Real, class Combine>
  __device__ __forceinline__ Real combined(Real value, Combine combine) const {
    return across_lanes(value, threads, combine);
  }
};

// How many lanes share a row: as many as it has 16-byte vectors, up to a warp. 0 for a block, from where on a lane
// would go along more than eight of them.
template <class Logit>
int lanes_of(int64_t classes) {
  constexpr int64_t step = kPerVector<Logit>;
  if (classes > kWarp * step * 8) return 0;
  int lanes = 1;
  while (lanes < kWarp && lanes * step < classes) lanes *= 2;
  return lanes;
}

// ---- one row --------------------------------------------------------------------------------------------------------

// The maximum and the sum of exponentials, at a temperature of 1 / scale, of the logits that a thread has seen, and of
// one that is known before, in none of the sums. The terms of the largest are counted.
template <class Real>
class TemperedSums {
 public:
  __device__ __forceinline__ TemperedSums(Real scale, Real known) : max_(known), scale_(scale), terms_(scale) {}

  template <int count>
  __device__ __forceinline__ void add(const Real (&x)[count]) {
    TermsOfSome<Real> terms(x, max_, terms_);
    if (terms.may_have_largest()) {
      const Real highest = highest_of(x);
      if (highest > max_) relative_to(highest);
      if (!(highest < max_)) terms.count_largest(x, max_, terms_);
    }
    others_.add(terms.others);
    largest_ += terms.largest;
  }

  // Of the row: all threads of the team must call it.
  template <class Team>
  __device__ __forceinline__ TemperedSoftmax<Real> of_row(Team team) {
    const Real max = team.combined(max_, Maximum());
    if (max_ != max) relative_to(max);
    return softmax_of(max, team.combined(others_.value(), Sum()), team.combined(largest_, Sum()), scale_);
  }

 private:
  Real max_, scale_, largest_ = 0;
  TemperedTerms<Real> terms_;
  CompensatedSum<Real> others_;

  __device__ __forceinline__ void relative_to(Real higher) {
    others_.add(largest_);
    others_.scale(terms_.ratio(max_, higher));
    max_ = higher;
    largest_ = 0;
  }
};

enum class Pass { forwards, backwards };  // what the pass before has read last may be cached still

// How many vectors of each a thread loads together for the sums; for the terms, which take more registers, one.
template <class Logit>
constexpr int kSumBatch = sizeof(Logit) == 8 ? 1 : 2;

// A thread's share of a row: body(x, y) for arrays of student's and teacher's numbers, one or a vector's worth. What it
// leaves in x is the gradient, if that is not null.
template <Pass pass, Caching caching, int most, class Team, class Logit, class Stored, class Body>
__device__ __forceinline__ void along_row(const Span<Logit>& span, Team team, const Logit* logits,
                                          const Stored* teacher, Logit* gradient, Body body) {
  using Real = Accumulator<Logit>;
  constexpr int step = kPerVector<Logit>;
  const int64_t threads = team.threads, thread = team.thread;
  for (int64_t i = thread; i < span.edges; i += threads) {
    const int64_t at = span.edge(i);
    Real x[1] = {number(logits[at])}, y[1] = {number(teacher[at])};
    body(x, y);
    if (gradient) gradient[at] = stored<Logit>(x[0]);
  }
  const auto steps = [&](auto batch, int64_t first) {
    Packed<Logit, step> of_student[batch];
    Packed<Stored, step> of_teacher[batch];
#pragma unroll
    for (int k = 0; k < batch; k++) {
      of_student[k] = load<step, caching>(logits + first + k * threads * step);
      of_teacher[k] = load<step, caching>(teacher + first + k * threads * step);
    }
#pragma unroll
    for (int k = 0; k < batch; k++) {
      Real x[step], y[step];
      of_student[k].numbers(x);
      of_teacher[k].numbers(y);
      body(x, y);
      if (gradient) store<Logit>(gradient + first + k * threads * step, x);
    }
  };
  if constexpr (pass == Pass::forwards) {
    for_batches<most>(thread, span.steps, threads, [&](auto batch, int64_t i) { steps(batch, span.start_of(i)); });
  } else {
    // In rounds of a step a thread; the last round may have none for this one.
    const int64_t last = (span.steps + threads - 1) / threads * threads - threads;
    const int64_t begin = last + thread < span.steps ? 0 : threads;
    for_batches<most>(begin, last + threads, threads, [&](auto batch, int64_t i) {
      steps(batch, span.start_of(last - i - (batch - 1) * threads + thread));
    });
  }
}

// Row `row`, of which nothing is read if it is masked or `exists` is false. Else logits and teacher are read twice
// (what the team begins with once more), and again for the gradient of a divergence whose total is not known before;
// results are written once.
template <class Team, class Divergence, class Logit, class Teacher>
__device__ __forceinline__ void divergence_of_row(const DivergenceRows<Divergence, Logit, Teacher>& rows, int64_t row,
                                                  bool exists, Team team) {
  using Real = Accumulator<Logit>;
  using Stored = typename Teacher::Stored;
  constexpr bool of_logits = std::is_same_v<Teacher, TeacherLogits<Stored>>;
  const Real weight = exists ? rows.row_weight.of(row) : Real(-0.0);
  const bool live = !is_masked(weight);
  const int64_t offset = exists ? row * rows.classes : 0;
  const Logit* logits = rows.logits + offset;
  Logit* gradient = exists && rows.gradient ? rows.gradient + offset : nullptr;
  const Stored* teacher;
  if constexpr (of_logits) {
    teacher = rows.teacher.logits + offset;
  } else {
    teacher = rows.teacher.probability + offset;
  }
  const Span<Logit> span(live ? rows.classes : 0, logits, gradient ? gradient : logits, teacher);
  const Real scale = live ? rows.scale.of(row) : Real(1);

  // The largest of what the team begins the row with: little that follows is larger, so that sums are seldom made
  // relative to another.
  const auto largest_of_first = [&](const auto* numbers) {
    Real highest = no_logits<Real>().max;
    if (team.thread < span.steps) {
      Real x[kPerVector<Logit>];
      load<kPerVector<Logit>, Caching::normal>(numbers + span.start_of(team.thread)).numbers(x);
      highest = Maximum()(highest, highest_of(x));
    }
    return team.combined(highest, Maximum());
  };
  TemperedSums<Real> of_student(scale, largest_of_first(logits));
  TemperedSums<Real> of_teacher(scale, of_logits ? largest_of_first(teacher) : Real(0));
  CompensatedSum<Real> teacher_sum;
  along_row<Pass::forwards, Caching::normal, kSumBatch<Logit>>(span, team, logits, teacher,
                                                               static_cast<Logit*>(nullptr), [&](auto& x, auto& y) {
                                                                 of_student.add(x);
                                                                 if constexpr (of_logits) {
                                                                   of_teacher.add(y);
                                                                 } else if constexpr (Divergence::total_is_of_teacher) {
                                                                   Real sum = 0;
                                                                   for (const Real a : y) sum += a;
                                                                   teacher_sum.add(sum);
                                                                 }
                                                               });
  const TemperedSoftmax<Real> student = of_student.of_row(team);
  TemperedSoftmax<Real> teacher_softmax{};
  if constexpr (of_logits) teacher_softmax = of_teacher.of_row(team);

  Real total = -1;
  if constexpr (Divergence::total_is_of_teacher && !of_logits) total = -team.combined(teacher_sum.value(), Sum());
  // Not by products with 0: a weight of 0 takes out a derivative that is infinite, and leaves no −0.
  Logit* const zeros = live && weight != 0 ? nullptr : gradient;
  if (zeros) gradient = nullptr;
  const Real factor = scale * weight;
  const DivergenceTerms<Divergence, Logit, Teacher> terms(live ? rows.parameter.of(row) : Real(0), student,
                                                          teacher_softmax);
  const auto gradient_of = [&](Real p, Real derivative) {
    if constexpr (Divergence::total_is_of_teacher && of_logits) return derivative * factor;
    return (derivative - p * total) * factor;
  };

  CompensatedSum<Real> losses, sum;
  constexpr bool two_passes = Divergence::total_is_of_teacher;
  along_row<Pass::backwards, two_passes ? Caching::evict_first : Caching::normal, 1>(
      span, team, logits, teacher, two_passes ? gradient : static_cast<Logit*>(nullptr), [&](auto& x, auto& y) {
        constexpr int count = std::extent_v<std::remove_reference_t<decltype(x)>>;
        Real values = 0, derivatives = 0, d[count];
        terms.log_ratios(x, y, d);
#pragma unroll
        for (int i = 0; i < count; i++) {
          Real p, value, derivative;
          terms(x[i], y[i], d[i], p, value, derivative);
          values += value;
          derivatives += derivative;
          if (two_passes) x[i] = gradient_of(p, derivative);
        }
        losses.add(values);
        sum.add(derivatives);
      });
  const Real loss = team.combined(losses.value(), Sum());
  if constexpr (!two_passes) {
    total = team.combined(sum.value(), Sum());
    if (gradient) {
      along_row<Pass::forwards, Caching::evict_first, 1>(span, team, logits, teacher, gradient, [&](auto& x, auto& y) {
        constexpr int count = std::extent_v<std::remove_reference_t<decltype(x)>>;
        Real d[count];
        terms.log_ratios(x, y, d);
#pragma unroll
        for (int i = 0; i < count; i++) {
          Real p, value, derivative;
          terms(x[i], y[i], d[i], p, value, derivative);
          x[i] = gradient_of(p, derivative);
        }
      });
    }
  }

  if (exists && team.thread == 0) {
    rows.loss[row] = live ? loss : Real(0);
    rows.max[row] = live ? student.max : Real(0);
    rows.log_sum[row] = live ? student.log_sum : Real(0);
    if constexpr (of_logits) {
      rows.teacher_max[row] = live ? teacher_softmax.max : Real(0);
      rows.teacher_log_sum[row] = live ? teacher_softmax.log_sum : Real(0);
    }
    rows.total[row] = live ? total : Real(0);
  }
  if (zeros) {
    const Span<Logit> all(rows.classes, zeros);
    const Real none[kPerVector<Logit>] = {};
    for (int64_t i = team.thread; i < all.edges; i += team.threads) zeros[all.edge(i)] = Logit{};
    for (int64_t i = team.thread; i < all.steps; i += team.threads) store<Logit>(zeros + all.start_of(i), none);
  }
}

// ---- kernels --------------------------------------------------------------------------------------------------------

// How many blocks are to fit on a multiprocessor: as many as leave enough registers for nothing to spill. Numbers of
// float64 take twice as many.
template <class Rows, int of_float>
constexpr int kBlocks = sizeof(typename Rows::Real) == 8 ? (of_float + 1) / 2 : of_float;

// What the compiler makes of 16-bit logits for other GPUs than Hopper's takes a register more than as many leave.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
constexpr int kFewer = 1;
#else
constexpr int kFewer = 0;
#endif
template <class Rows>
constexpr int kFewerBlocks = sizeof(*Rows::logits) == 2 ? kFewer : 0;

// Block b takes rows b, b + gridDim.x, …
template <class Rows>
__global__ void __launch_bounds__(kBlockThreads<Rows>, (kBlocks<Rows, 1024 / kBlockThreads<Rows>> - kFewerBlocks<Rows>))
    divergence_by_blocks(Rows rows) {
  for (int64_t row = blockIdx.x; row < rows.rows; row += gridDim.x) {
    divergence_of_row(rows, row, true, BlockTeam<kBlockThreads<Rows>>{static_cast<int>(threadIdx.x)});
  }
}

// Each `lanes` threads, a power of two up to a warp, take one row after the other. Lanes without a row go along, for
// they exchange numbers with those that have one.
template <class Rows>
__global__ void __launch_bounds__(kLaneThreads, (kBlocks<Rows, 5> - kFewerBlocks<Rows>))
    divergence_by_lanes(Rows rows, int lanes) {
  const int teams = kLaneThreads / lanes, team = threadIdx.x / lanes;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * teams; first < rows.rows;
       first += static_cast<int64_t>(gridDim.x) * teams) {
    const int64_t row = first + team;
    divergence_of_row(rows, row, row < rows.rows, LaneTeam{static_cast<int>(threadIdx.x) % lanes, lanes});
  }
}

template <class Rows>
cudaError_t launch_teams(cudaStream_t stream, const Rows& rows) {
  const auto grid = [](int64_t blocks) { return static_cast<unsigned>(blocks < 0x7fffffff ? blocks : 0x7fffffff); };
  const int lanes = lanes_of<std::remove_cv_t<std::remove_pointer_t<decltype(rows.logits)>>>(rows.classes);
  if (lanes == 0) {
    divergence_by_blocks<<<grid(rows.rows), kBlockThreads<Rows>, 0, stream>>>(rows);
  } else {
    const int64_t teams = kLaneThreads / lanes;
    divergence_by_lanes<<<grid((rows.rows + teams - 1) / teams), kLaneThreads, 0, stream>>>(rows, lanes);
  }
  return cudaGetLastError();
}

}  // namespace jaxloss::gpu
