// Rows of logits in shared memory: what a thread holds of one, copied there at once, and how it goes along that.
#pragma once

#include "gpu/core/async.cuh"
#include "gpu/core/softmax.cuh"
#include "gpu/core/vector.cuh"

namespace jaxloss::gpu {

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

// The largest and the smallest of logits, of which two of 16 bits are compared at once; NaNs are passed over, but the
// smallest is NaN of them.
template <class Logit>
class Extremes {
 public:
  static constexpr int step = kPerVector<Logit>;

  __device__ __forceinline__ void add(const Packed<Logit, step>& packed) {
    uint4 &a = most_.vector[0], &b = least_.vector[0];
    const uint4& x = packed.vector[0];
    a = make_uint4(larger_of(a.x, x.x, Logit()), larger_of(a.y, x.y, Logit()), larger_of(a.z, x.z, Logit()),
                   larger_of(a.w, x.w, Logit()));
    b = make_uint4(smaller_of(b.x, x.x, Logit()), smaller_of(b.y, x.y, Logit()), smaller_of(b.z, x.z, Logit()),
                   smaller_of(b.w, x.w, Logit()));
  }
  __device__ __forceinline__ float largest() const { return of<Maximum>(most_, -INFINITY); }
  __device__ __forceinline__ float smallest() const { return of<SmallerOrNan>(least_, INFINITY); }

 private:
  struct SmallerOrNan {
    __device__ __forceinline__ float operator()(float a, float b) const { return smaller_or_nan(a, b); }
  };

  template <class Combine>
  static __device__ __forceinline__ float of(const Packed<Logit, step>& packed, float none) {
    float x[step];
    packed.numbers(x);
#pragma unroll
    for (int j = 0; j < step; j++) none = Combine()(none, x[j]);
    return none;
  }
  Packed<Logit, step> most_ = minus_infinities<Logit>(), least_ = negated<Logit>(minus_infinities<Logit>());
};

// What a thread holds of a row: every `stride`-th step from `first` on, up to `end`, and of the edges every
// `edge_stride`-th. Its own steps lie in shared memory, `blockDim.x` vectors apart.
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
    const Logit* from = logits + (head + first * step);
    uint4* slot = slots;
#pragma unroll 1
    for (int i = first; i < end; i += stride) {
      copy_own(slot, from);
      from += stride * step;
      slot += blockDim.x;
    }
    if (first_edge < edges) first_edge_logit = number(logits[edge(first_edge)]);
  }
  __device__ __forceinline__ void wait() const { wait_for_own_copies(); }

  // body(packed, i) for each of this thread's steps, which begins at number i.
  template <class Body>
  __device__ __forceinline__ void for_vectors(Body body) const {
    for_slots([&](const uint4* slot, int i) { body(Packed<Logit, step>{{*slot}}, i); });
  }
  // body(slot, slot_of_other, i), with that of the same step of another row that is held alike. It may leave there what
  // is to be found instead.
  template <class Body>
  __device__ __forceinline__ void for_vectors_beside(const Held& other, Body body) const {
    const ptrdiff_t apart = other.slots - slots;
    for_slots([&](uint4* slot, int i) { body(slot[0], slot[apart], i); });
  }
  // body(i, x) for each number of the edges that is this thread's.
  template <class Body>
  __device__ __forceinline__ void for_edges(Body body) const {
    for (int k = first_edge; k < edges; k += edge_stride) {
      body(edge(k), k == first_edge ? first_edge_logit : number(logits[edge(k)]));
    }
  }
  // The same with that of the other row.
  template <class Body>
  __device__ __forceinline__ void for_edges_beside(const Held& other, Body body) const {
    for_edges([&](int i, float logit) {
      body(i, logit, i == edge(first_edge) ? other.first_edge_logit : number(other.logits[i]));
    });
  }
  // NaNs are passed over.
  __device__ __forceinline__ float largest() const {
    Extremes<Logit> extremes;
    for_vectors([&](const Packed<Logit, step>& packed, int) { extremes.add(packed); });
    float largest = extremes.largest();
    for_edges([&](int, float logit) { largest = fmaxf(largest, logit); });
    return largest;
  }
  __device__ __forceinline__ bool in_steps(int i) const { return i >= head && i < head + steps * step; }
  __device__ __forceinline__ bool holds(int i) const {
    if (in_steps(i)) return place_of(i) >= 0;
    const int k = i < head ? i : i - steps * step;
    return k >= first_edge && k < edges && (k - first_edge) % edge_stride == 0;
  }
  // The label's logit is then `replaced` in its step.
  __device__ __forceinline__ Extent extent(int label, float replaced) const {
    Extent extent;
    Extremes<Logit> extremes;
    // While they are compared, one beside it stands there: what is as large as another, and as small.
    const int at = place_of(label);
    Logit* const numbers = reinterpret_cast<Logit*>(slots);
    if (at >= 0) {
      extent.has_label = true;
      numbers[at] = numbers[at ^ 1];
    }
    for_vectors([&](const Packed<Logit, step>& packed, int) { extremes.add(packed); });
    if (at >= 0) numbers[at] = stored<Logit>(replaced);
    extent.largest = extremes.largest();
    extent.smallest = extremes.smallest();
    for_edges([&](int i, float logit) {
      extent.has_label |= i == label;
      if (i == label) return;
      extent.largest = fmaxf(extent.largest, logit);
      extent.smallest = smaller_or_nan(extent.smallest, logit);
    });
    return extent;
  }

 private:
  __device__ __forceinline__ int edge(int k) const { return k < head ? k : k + steps * step; }
  // Of a number that this thread holds in a step: how many numbers after its first slot. −1 of others.
  __device__ __forceinline__ int place_of(int i) const {
    const int vector = (i - head) / step, beyond_first = vector - first;
    if (!in_steps(i) || beyond_first < 0 || vector >= end) return -1;
    const unsigned k = static_cast<unsigned>(beyond_first) / static_cast<unsigned>(stride);
    if (k * stride != static_cast<unsigned>(beyond_first)) return -1;
    return static_cast<int>(k * blockDim.x * step) + (i - head) % step;
  }
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

}  // namespace jaxloss::gpu
