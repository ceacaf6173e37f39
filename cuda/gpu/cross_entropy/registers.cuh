// Cross entropy of short rows: a few lanes of a warp, or all, hold a row in registers.
#pragma once

#include "gpu/core/alignment.h"
#include "gpu/core/device.h"
#include "gpu/core/softmax.cuh"
#include "gpu/core/vector.cuh"
#include "rows.h"

namespace jaxloss::gpu {

constexpr int kRegistersThreads = 128;

// Blocks on a multiprocessor, at least: with 4 the compiler may use 128 registers a thread, with 8 it may use 64.
template <bool kGradient, int slots, class Real>
constexpr int kRegistersBlocks = kGradient || slots > 8 || sizeof(Real) == 8 ? 4 : 8;

// Which row a thread works on, and what of it: of its aligned vectors every lanes-th, in `slots` slots, and of the
// numbers before and after them, its edges, every lanes-th. No thread leaves early, for its warp shuffles: the rows
// after the last count as masked.
template <int slots, class Logit>
struct Place {
  using Real = Accumulator<Logit>;
  static constexpr int step = kPerVector<Logit>;
  int64_t row, offset;
  int lane, lanes, head, steps, edges;
  Real weight;
  bool exists, wanted;

  template <class Rows>
  __device__ __forceinline__ Place(const Rows& rows, int lanes_) : lanes(lanes_) {
    row = (static_cast<int64_t>(blockIdx.x) * kRegistersThreads + threadIdx.x) >> (__ffs(lanes) - 1);
    exists = row < rows.rows;
    weight = exists ? rows.weight_of(row) : Real(-0.0);
    wanted = !is_masked(weight);
    offset = exists ? row * rows.classes : 0;
    lane = threadIdx.x & (lanes - 1);
    const int classes = static_cast<int>(rows.classes);
    head = -static_cast<int>(reinterpret_cast<uintptr_t>(rows.logits + offset) / sizeof(Logit)) & (step - 1);
    head = head < classes ? head : classes;
    steps = (classes - head) / step;
    edges = classes - steps * step;
  }

  // body(k, i) for each slot k that holds a vector of the row, whose first number is number i.
  template <class Body>
  __device__ __forceinline__ void for_slots(Body body) const {
#pragma unroll
    for (int k = 0; k < slots; k++) {
      const int i = lane + k * lanes;
      if (i < steps) body(k, head + i * step);
    }
  }
  // body(i) for each number i of the edges. They are few, and read again wherever they are needed.
  template <class Body>
  __device__ __forceinline__ void for_edges(Body body) const {
    for (int i = lane; i < edges; i += lanes) body(i < head ? i : i + steps * step);
  }

  template <class Rows>
  __device__ __forceinline__ void store_results(const Rows& rows, Real loss, Real max, Real log_sum) const {
    if (lane != 0 || !exists) return;
    rows.store_results(row, wanted ? loss : Real(0), wanted ? max : Real(0), wanted ? log_sum : Real(0));
  }
};

// A row's logits, in registers, and Σ exponentials.term(x). With `kPairs` 16-bit numbers are compared as they are
// stored, two at a time, and are −∞ in slots that hold none of the row: fewer instructions, and more registers.
template <bool kPairs, int slots, class Logit>
struct SoftmaxInRegisters {
  using Real = Accumulator<Logit>;
  static constexpr int step = kPerVector<Logit>;
  Packed<Logit, step> logits[slots];
  using Terms = std::conditional_t<kPairs, ExponentialsOf<Logit>, Exponentials<Real>>;
  Terms exponentials{Real(0)};
  Real sum = 0;

  __device__ __forceinline__ void load(const Place<slots, Logit>& place, const Logit* row) {
    if constexpr (kPairs) {
#pragma unroll
      for (int k = 0; k < slots; k++) logits[k] = minus_infinities<Logit>();
    }
    if (!place.wanted) return;
    place.for_slots([&](int k, int i) { logits[k] = gpu::load<step, Caching::normal>(row + i); });
  }

  // Of all classes but `left_out`, which may be none, relative to a maximum that has its logit.
  __device__ __forceinline__ void reduce(const Place<slots, Logit>& place, const Logit* row, int left_out = -1,
                                         Real logit = -static_cast<Real>(INFINITY)) {
    const auto edge = [&](int i) { return i == left_out ? -static_cast<Real>(INFINITY) : number(row[i]); };
    const Real max = Maximum()(highest(place, edge), logit);
    exponentials = Terms(across_lanes(max, place.lanes, Maximum()));
    Real sums[kPairs ? 4 : 1] = {};  // several, where all slots count: each waits for its last addition
    for_counted(place, [&](int k) {
      Real x[step];
      logits[k].numbers(x);
#pragma unroll
      for (int j = 0; j < step; j++) sums[kPairs ? j % 4 : 0] += exponentials.term(x[j]);
    });
    if (place.wanted) place.for_edges([&](int i) { sums[0] += exponentials.term(edge(i)); });
    const Real own = kPairs ? (sums[0] + sums[kPairs]) + (sums[2 * kPairs] + sums[3 * kPairs]) : sums[0];
    sum = exponentials.corrected(across_lanes(own, place.lanes, Sum()));
  }

  // The sum without the term of the largest, of rows where it is worth that. By all lanes of the warp.
  __device__ __forceinline__ Real rest(const Place<slots, Logit>& place, const Logit* row) const {
    const bool sure = is_sure(sum);
    if (!__any_sync(kAllLanes, sure)) return sum - 1;
    Real below = 0;
    for_counted(place, [&](int k) {
      Real x[step];
      logits[k].numbers(x);
#pragma unroll
      for (int j = 0; j < step; j++) below += exponentials.term_of_others(x[j]);
    });
    if (place.wanted) place.for_edges([&](int i) { below += exponentials.term_of_others(number(row[i])); });
    below = across_lanes(below, place.lanes, Sum());
    return sure ? below : sum - 1;
  }

 private:
  template <class Body>
  static __device__ __forceinline__ void for_counted(const Place<slots, Logit>& place, Body body) {
    if constexpr (kPairs) {
#pragma unroll
      for (int k = 0; k < slots; k++) body(k);
    } else if (place.wanted) {
      place.for_slots([&](int k, int) { body(k); });
    }
  }

  template <class Edge>
  __device__ __forceinline__ Real highest(const Place<slots, Logit>& place, Edge edge) const {
    Real max = no_logits<Real>().max;
    if constexpr (kPairs) {
      max = Maximum()(max, largest(logits));
    } else {
      for_counted(place, [&](int k) {
        Real x[step];
        logits[k].numbers(x);
#pragma unroll
        for (int j = 0; j < step; j++) max = Maximum()(max, x[j]);
      });
    }
    if (place.wanted) place.for_edges([&](int i) { max = Maximum()(max, edge(i)); });
    return max;
  }
};

// `lanes` threads a row, a power of two up to 32, so many that lanes · slots vectors are all of a row. A row's logits
// are read once, its gradient is written once; of a masked row nothing is read. Logits and gradient must be aligned
// alike.
template <bool kGradient, int slots, class Logit>
__global__ void __launch_bounds__(kRegistersThreads, (kRegistersBlocks<kGradient, slots, Accumulator<Logit>>))
    cross_entropy_registers(CrossEntropyRows<Logit, ClassIndices> rows, int lanes) {
  using Real = Accumulator<Logit>;
  constexpr int step = kPerVector<Logit>;
  const Place<slots, Logit> place(rows, lanes);
  const Logit* logits = rows.logits + place.offset;
  SoftmaxInRegisters<sizeof(Logit) == 2, slots, Logit> softmax;
  softmax.load(place, logits);
  const int index = place.wanted ? rows.target.index[place.row] : -1;
  const bool valid = index >= 0 && index < rows.classes;
  const Real label_logit = valid ? number(logits[index]) : -static_cast<Real>(INFINITY);
  if (valid) {
    place.for_slots([&](int k, int i) {
      if (static_cast<unsigned>(index - i) < step) leave_out(softmax.logits[k], index - i);
    });
  }
  softmax.reduce(place, logits, valid ? index : -1, label_logit);

  const LabelledSums<Real> sums({softmax.exponentials.max, softmax.sum}, valid, label_logit);
  const Real nll = negative_log_likelihood(sums.log_sum, label_logit - sums.max, rows.ceiling);
  place.store_results(rows, valid ? nll : static_cast<Real>(NAN), sums.max, sums.log_sum);
  if (!kGradient || !place.exists) return;

  Logit* gradient = rows.gradient + place.offset;
  const bool zero = !valid || place.weight == 0;
  const auto& exponentials = softmax.exponentials;  // relative to the same maximum
  const Real scale = exponentials.corrected(place.weight * sums.inverse),
             of_label = sums.label_derivative() * place.weight;
  place.for_slots([&](int k, int i) {
    Real x[step] = {};
    if (!zero) {
      softmax.logits[k].numbers(x);
#pragma unroll
      for (int j = 0; j < step; j++) x[j] = exponentials.term(x[j]) * scale;
      if (static_cast<unsigned>(index - i) < step) {
#pragma unroll
        for (int j = 0; j < step; j++) x[j] = i + j == index ? of_label : x[j];
      }
    }
    store<Logit>(gradient + i, x);
  });
  place.for_edges([&](int i) {
    const Real x = zero ? Real(0) : i == index ? of_label : exponentials.term(number(logits[i])) * scale;
    gradient[i] = stored<Logit>(x);
  });
}

// The same with probabilities, which are read once too, and aligned alike too.
template <bool kGradient, int slots, class Logit, class Stored>
__global__ void __launch_bounds__(kRegistersThreads, 4)
    cross_entropy_registers(CrossEntropyRows<Logit, ClassProbabilities<Stored>> rows, int lanes) {
  using Real = Accumulator<Logit>;
  constexpr int step = kPerVector<Logit>;
  const Place<slots, Logit> place(rows, lanes);
  const Logit* logits = rows.logits + place.offset;
  const Stored* target = rows.target.probability + place.offset;
  SoftmaxInRegisters<false, slots, Logit> softmax;
  softmax.load(place, logits);
  Packed<Stored, step> targets[slots];
  if (place.wanted) {
    place.for_slots([&](int k, int i) { targets[k] = load<step, Caching::normal>(target + i); });
  }
  softmax.reduce(place, logits);

  const Real max = softmax.exponentials.max, rest = softmax.rest(place, logits);
  const Real log_sum = log_of_sum(softmax.sum, rest, is_sure(softmax.sum));
  Real loss = 0, target_sum = 0;
  const auto loss_of = [&](Real x, Real a) {
    return weighted(a, negative_log_likelihood(log_sum, x - max, rows.ceiling));
  };
  if (place.wanted) {
    place.for_slots([&](int k, int) {
      Real x[step], a[step], of_vector = 0, target_of_vector = 0;
      softmax.logits[k].numbers(x);
      targets[k].numbers(a);
#pragma unroll
      for (int j = 0; j < step; j++) {
        of_vector += loss_of(x[j], a[j]);
        target_of_vector += a[j];
      }
      loss += of_vector;
      target_sum += target_of_vector;
    });
    place.for_edges([&](int i) {
      const Real a = number(target[i]);
      loss += loss_of(number(logits[i]), a);
      target_sum += a;
    });
  }
  place.store_results(rows, across_lanes(loss, lanes, Sum()), max, log_sum);
  if (!kGradient) return;
  target_sum = across_lanes(target_sum, lanes, Sum());
  if (!place.exists) return;

  Logit* gradient = rows.gradient + place.offset;
  const bool zero = place.weight == 0;
  const Real scale = target_sum / softmax.sum, largest = sure_maximum(max, softmax.sum);
  const auto derivative = [&](Real x, Real a) {
    const Real of_class = softmax.exponentials.term(x) * scale - a;
    return (x == largest ? (target_sum - a) - rest * scale : of_class) * place.weight;
  };
  place.for_slots([&](int k, int i) {
    Real x[step] = {};
    if (!zero) {
      Real a[step];
      softmax.logits[k].numbers(x);
      targets[k].numbers(a);
#pragma unroll
      for (int j = 0; j < step; j++) x[j] = derivative(x[j], a[j]);
    }
    store<Logit>(gradient + i, x);
  });
  place.for_edges(
      [&](int i) { gradient[i] = stored<Logit>(zero ? Real(0) : derivative(number(logits[i]), number(target[i]))); });
}

// A row as threads hold it.
struct RegistersShape {
  int slots;  // 0: the row is too long, or its arrays are not aligned alike
  int lanes;
};

// Arithmetic in double has no registers, nor instructions, to spare.
template <class Logit, class Target>
constexpr int kMostSlots = sizeof(Logit) == 8                     ? 4
                           : std::is_same_v<Target, ClassIndices> ? 16
                                                                  : 8;

// Few vectors a thread while a warp has more threads, then more of them. What is done once a row is done by every
// thread of it, so that rows that come fast get fewer threads: 16-bit ones, and longer ones that are only read.
template <class Logit, class Target>
int least_slots(int64_t vectors, bool gradient) {
  const bool come_fast = sizeof(Logit) == 2 || (sizeof(Logit) == 4 && !gradient && vectors > 16);
  return come_fast && std::is_same_v<Target, ClassIndices> ? 4 : 2;
}

template <class Logit, class Target>
RegistersShape registers_shape(const CrossEntropyRows<Logit, Target>& rows) {
  constexpr int step = kPerVector<Logit>;
  if (!aligned_alike(rows)) return {0, 0};
  const int64_t vectors = rows.classes / step;
  RegistersShape shape{least_slots<Logit, Target>(vectors, rows.gradient), fewest_lanes(rows)};
  while (shape.lanes < kWarp && shape.lanes * shape.slots < vectors) shape.lanes *= 2;
  while (shape.slots < kMostSlots<Logit, Target> && shape.lanes * shape.slots < vectors) shape.slots *= 2;
  return shape.lanes * shape.slots < vectors ? RegistersShape{0, 0} : shape;
}

template <class Logit, class Target>
using RegistersKernel = void (*)(CrossEntropyRows<Logit, Target>, int);

template <bool kGradient, int slots, class Logit, class Target>
RegistersKernel<Logit, Target> registers_kernel(const CrossEntropyRows<Logit, Target>&) {
  return cross_entropy_registers<kGradient, slots>;
}

template <class Logit, class Target>
cudaError_t launch_registers(cudaStream_t stream, const CrossEntropyRows<Logit, Target>& rows, RegistersShape shape) {
  const int64_t rows_a_block = kRegistersThreads / shape.lanes;
  const int64_t blocks = quotient_rounded_up(rows.rows, rows_a_block);
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const auto run = [&](auto slots) {
    const auto kernel = rows.gradient ? registers_kernel<true, slots>(rows) : registers_kernel<false, slots>(rows);
    kernel<<<static_cast<unsigned>(blocks), kRegistersThreads, 0, stream>>>(rows, shape.lanes);
    return cudaGetLastError();
  };
  switch (shape.slots) {
    case 2:
      if constexpr (sizeof(Logit) != 2 || !std::is_same_v<Target, ClassIndices>) return run(Count<2>{});
      break;
    case 4:
      return run(Count<4>{});
    case 8:
      if constexpr (kMostSlots<Logit, Target> >= 8) return run(Count<8>{});
      break;
    case 16:
      if constexpr (kMostSlots<Logit, Target> >= 16) return run(Count<16>{});
      break;
  }
  return cudaErrorInvalidConfiguration;
}

}  // namespace jaxloss::gpu
