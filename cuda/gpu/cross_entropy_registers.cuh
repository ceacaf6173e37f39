// Cross entropy of short rows: a few lanes of a warp, or all, hold a row in registers.
#pragma once

#include "gpu/softmax.cuh"
#include "gpu/vector.cuh"
#include "rows.h"

namespace jaxloss::gpu {

constexpr int kRegistersThreads = 128;

// Blocks on a multiprocessor, at least: with 4 the compiler may use 128 registers a thread, with 8 it may use 64.
template <bool kGradient, int slots, class Real>
constexpr int kRegistersBlocks = kGradient || slots > 8 || sizeof(Real) == 8 ? 4 : 8;

// Numbers first, …, first + count − 1 of a row, as far as 0 ≤ i < classes. Nothing outside the row is read: it may be
// another row, being overwritten by its gradient.
template <int count, class Stored>
__device__ __forceinline__ Packed<Stored, count> load_within(const Stored* row, int first, int classes,
                                                             Stored otherwise) {
  if (first >= 0 && first + count <= classes && aligned(row + first)) return load<count, Caching::normal>(row + first);
  Stored x[count];
#pragma unroll
  for (int k = 0; k < count; k++) {
    const int i = first + k;
    x[k] = i >= 0 && i < classes ? row[i] : otherwise;
  }
  Packed<Stored, count> packed;
  static_assert(sizeof(packed) == sizeof(x));
  memcpy(&packed, x, sizeof(x));
  return packed;
}

template <class Stored, int count>
__device__ __forceinline__ void store_within(Stored* row, int first, int classes,
                                             const Accumulator<Stored> (&x)[count]) {
  if (first >= 0 && first + count <= classes && aligned(row + first)) {
    store<Stored>(row + first, x);
    return;
  }
#pragma unroll
  for (int k = 0; k < count; k++) {
    const int i = first + k;
    if (i >= 0 && i < classes) row[i] = stored<Stored>(x[k]);
  }
}

// Which row a thread works on, and which of its vectors it holds: of those that enclose the row, every lanes-th, in
// `slots` slots. No thread leaves early, for its warp shuffles: the rows after the last count as taken out.
template <int slots, class Logit>
struct Place {
  using Real = Accumulator<Logit>;
  static constexpr int step = kPerVector<Logit>;
  int64_t row, offset;
  int lane, lanes, classes, first;
  Real weight;
  bool exists, wanted;

  template <class Rows>
  __device__ __forceinline__ Place(const Rows& rows, int lanes_) : lanes(lanes_) {
    row = (static_cast<int64_t>(blockIdx.x) * kRegistersThreads + threadIdx.x) >> (__ffs(lanes) - 1);
    exists = row < rows.rows;
    weight = exists ? rows.weight_of(row) : Real(-0.0);
    wanted = !taken_out(weight);
    offset = exists ? row * rows.classes : 0;
    classes = static_cast<int>(rows.classes);
    lane = threadIdx.x & (lanes - 1);
    const uintptr_t misaligned = reinterpret_cast<uintptr_t>(rows.logits + offset) % kVectorBytes;
    first = lane * step - static_cast<int>(misaligned / sizeof(Logit));
  }

  // body(k, i) for each slot k that holds numbers of the row, the first of them number i.
  template <class Body>
  __device__ __forceinline__ void for_slots(Body body) const {
#pragma unroll
    for (int k = 0; k < slots; k++) {
      const int i = first + k * lanes * step;
      if (i < classes) body(k, i);
    }
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
  Exponentials<Real> exponentials{Real(0)};
  Real sum = 0;

  __device__ __forceinline__ void load(const Place<slots, Logit>& place, const Logit* row) {
    const Logit lowest = stored<Logit>(-static_cast<Real>(INFINITY));
    if constexpr (kPairs) {
#pragma unroll
      for (int k = 0; k < slots; k++) logits[k] = minus_infinities<Logit>();
    }
    if (!place.wanted) return;
    place.for_slots([&](int k, int i) { logits[k] = load_within<step>(row, i, place.classes, lowest); });
  }

  __device__ __forceinline__ void reduce(const Place<slots, Logit>& place) {
    exponentials = Exponentials<Real>(across_lanes(highest(place), place.lanes, Maximum()));
    Real sums[kPairs ? 4 : 1] = {};  // several, where all slots count: each waits for its last addition
    for_counted(place, [&](int k) {
      Real x[step];
      logits[k].numbers(x);
#pragma unroll
      for (int j = 0; j < step; j++) sums[kPairs ? j % 4 : 0] += exponentials.term(x[j]);
    });
    sum = across_lanes(kPairs ? (sums[0] + sums[kPairs]) + (sums[2 * kPairs] + sums[3 * kPairs]) : sums[0], place.lanes,
                       Sum());
  }

  __device__ __forceinline__ Real log_sum() const { return logarithm(sum); }

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

  __device__ __forceinline__ Real highest(const Place<slots, Logit>& place) const {
    Real max = no_logits<Real>().max;
    if constexpr (kPairs) return Maximum()(max, largest(logits));
    for_counted(place, [&](int k) {
      Real x[step];
      logits[k].numbers(x);
#pragma unroll
      for (int j = 0; j < step; j++) max = Maximum()(max, x[j]);
    });
    return max;
  }
};

// `lanes` threads a row, a power of two up to 32, so many that lanes · slots vectors hold a row at any alignment. A
// row's logits are read once, its gradient is written once; of a row taken out nothing is read.
template <bool kGradient, int slots, class Logit>
__global__ void __launch_bounds__(kRegistersThreads, (kRegistersBlocks<kGradient, slots, Accumulator<Logit>>))
    cross_entropy_registers(CrossEntropyRows<Logit, ClassIndices> rows, int lanes) {
  using Real = Accumulator<Logit>;
  constexpr int step = kPerVector<Logit>;
  const Place<slots, Logit> place(rows, lanes);
  SoftmaxInRegisters<sizeof(Logit) == 2, slots, Logit> softmax;
  softmax.load(place, rows.logits + place.offset);
  const int index = place.wanted ? rows.target.index[place.row] : -1;
  const bool valid = index >= 0 && index < place.classes;
  const Real label_logit = valid && place.lane == 0 ? number(rows.logits[place.offset + index]) : Real(0);
  softmax.reduce(place);

  const Real max = softmax.exponentials.max, log_sum = softmax.log_sum();
  const Real nll = negative_log_likelihood(log_sum, label_logit - max, rows.ceiling);
  place.store_results(rows, valid ? nll : static_cast<Real>(NAN), max, log_sum);
  if (!kGradient || !place.exists) return;

  const bool zero = !valid || place.weight == 0;
  const Real scale = place.weight / softmax.sum;
  place.for_slots([&](int k, int i) {
    Real x[step] = {};
    if (!zero) {
      softmax.logits[k].numbers(x);
#pragma unroll
      for (int j = 0; j < step; j++) {
        x[j] = softmax.exponentials.term(x[j]) * scale;
        if (i + j == index) x[j] -= place.weight;
      }
    }
    store_within<Logit>(rows.gradient + place.offset, i, place.classes, x);
  });
}

// The same with probabilities, which are read once too.
template <bool kGradient, int slots, class Logit, class Stored>
__global__ void __launch_bounds__(kRegistersThreads, 4)
    cross_entropy_registers(CrossEntropyRows<Logit, ClassProbabilities<Stored>> rows, int lanes) {
  using Real = Accumulator<Logit>;
  constexpr int step = kPerVector<Logit>;
  const Place<slots, Logit> place(rows, lanes);
  SoftmaxInRegisters<false, slots, Logit> softmax;
  softmax.load(place, rows.logits + place.offset);
  Packed<Stored, step> targets[slots];
  if (place.wanted) {
    const Stored* row = rows.target.probability + place.offset;
    place.for_slots([&](int k, int i) { targets[k] = load_within<step>(row, i, place.classes, Stored{}); });
  }
  softmax.reduce(place);

  const Real max = softmax.exponentials.max, log_sum = softmax.log_sum();
  Real loss = 0, target_sum = 0;
  if (place.wanted) {
    place.for_slots([&](int k, int) {
      Real x[step], a[step];
      softmax.logits[k].numbers(x);
      targets[k].numbers(a);
#pragma unroll
      for (int j = 0; j < step; j++) {
        loss += weighted(a[j], negative_log_likelihood(log_sum, x[j] - max, rows.ceiling));
        target_sum += a[j];
      }
    });
  }
  place.store_results(rows, across_lanes(loss, lanes, Sum()), max, log_sum);
  if (!kGradient) return;
  target_sum = across_lanes(target_sum, lanes, Sum());
  if (!place.exists) return;

  const Real scale = target_sum / softmax.sum;
  place.for_slots([&](int k, int i) {
    Real x[step] = {};
    if (place.weight != 0) {
      Real a[step];
      softmax.logits[k].numbers(x);
      targets[k].numbers(a);
#pragma unroll
      for (int j = 0; j < step; j++) x[j] = (softmax.exponentials.term(x[j]) * scale - a[j]) * place.weight;
    }
    store_within<Logit>(rows.gradient + place.offset, i, place.classes, x);
  });
}

// A row as threads hold it.
struct RegistersShape {
  int slots;  // 0: the row is too long
  int lanes;
};

// Arithmetic in double has no registers, nor instructions, to spare.
template <class Logit, class Target>
constexpr int kMostSlots = sizeof(Logit) == 8                     ? 4
                           : std::is_same_v<Target, ClassIndices> ? 16
                                                                  : 8;

// Few vectors a thread while a warp has more threads, then more of them. What is done once a row is done by every
// thread of it, so that 16-bit rows, which come twice as fast, get fewer threads.
template <class Logit, class Target>
constexpr int kLeastSlots = sizeof(Logit) == 2 && std::is_same_v<Target, ClassIndices> ? 4 : 2;

template <class Logit, class Target>
RegistersShape registers_shape(const CrossEntropyRows<Logit, Target>& rows) {
  constexpr int step = kPerVector<Logit>;
  const bool rows_aligned = reinterpret_cast<uintptr_t>(rows.logits) % kVectorBytes == 0 && rows.classes % step == 0;
  const int64_t vectors = rows.classes / step + (rows_aligned ? 0 : 2);
  RegistersShape shape{kLeastSlots<Logit, Target>, 1};
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
  const int64_t blocks = (rows.rows + rows_a_block - 1) / rows_a_block;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const auto run = [&](auto slots) {
    const auto kernel = rows.gradient ? registers_kernel<true, slots>(rows) : registers_kernel<false, slots>(rows);
    kernel<<<static_cast<unsigned>(blocks), kRegistersThreads, 0, stream>>>(rows, shape.lanes);
    return cudaGetLastError();
  };
  switch (shape.slots) {
    case 2:
      if constexpr (kLeastSlots<Logit, Target> <= 2) return run(Count<2>{});
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
