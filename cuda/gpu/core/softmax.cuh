// Exponentials of logits relative to a maximum, with the hardware's exponential of base 2.
#pragma once

#include "gpu/core/reduce.cuh"
#include "gpu/core/vector.cuh"
#include "maths/instructions.cuh"

namespace jaxloss::gpu {

// exp(x − max), for x up to max. The difference comes first: an offset common to all logits has cancelled, however
// large, before anything is rounded. (2^(x·log₂e − max·log₂e) takes an instruction less. The rounding of its second
// product has no bound for floats beyond 2^16; `StoredExponentials` has it for numbers of 16 bits.)
template <class Real>
struct Exponentials {
  Real max;

  __device__ __forceinline__ explicit Exponentials(Real max_) : max(max_) {}
  __device__ __forceinline__ float term(float x) const { return power_of_two((x - max) * 1.44269504f); }
  __device__ __forceinline__ double term(double x) const { return exp(x - max); }
  // The same, and nothing of the largest, to add up what is small beside it.
  __device__ __forceinline__ Real term_of_others(Real x) const { return x == max ? Real(0) : term(x); }

  // What a sum of these terms is multiplied by to be one of `higher`'s.
  __device__ __forceinline__ Real as_terms_of(const Exponentials& higher) const { return higher.term(max); }
  // What a sum of these terms is as one of exp(x − max), or a factor of exp(x − max) as one of these terms.
  static __device__ __forceinline__ Real corrected(Real factor) { return factor; }
};

// The same of numbers of 16 bits as they are stored, in one instruction less each: 2^(x·f − max·f) with f = log₂e. x·f
// is exact inside the fma. max·f is rounded, which multiplies every term by the same factor; `corrected` takes it back
// once. The largest's own term is within a few ulp of 1 then, and not 1. From |max| = 2^16 on such numbers are at least
// 256 apart: all terms but the largest's are 0 to any base, so f = 1, which rounds nothing.
struct StoredExponentials {
  float max, factor, offset, correction;

  __device__ __forceinline__ explicit StoredExponentials(float max_) : max(max_) {
    factor = fabsf(max) < 65536.0f ? 1.44269504f : 1.0f;
    offset = -max * factor;
    correction = power_of_two(-fmaf(max, factor, offset));
  }
  __device__ __forceinline__ float term(float x) const { return power_of_two(fmaf(x, factor, offset)); }
  __device__ __forceinline__ float as_terms_of(const StoredExponentials& higher) const {
    return higher.term(max) * correction;
  }
  __device__ __forceinline__ float corrected(float sum) const { return sum * correction; }
};
// Of logits that are stored as `Logit`.
template <class Logit>
using ExponentialsOf = std::conditional_t<sizeof(Logit) == 2, StoredExponentials, Exponentials<Accumulator<Logit>>>;

// Logits that are not there: they add nothing to a sum, and are no maximum.
template <class Logit>
__device__ __forceinline__ Packed<Logit, kPerVector<Logit>> minus_infinities() {
  const uint32_t word = std::is_same_v<Logit, float>      ? 0xff800000u
                        : std::is_same_v<Logit, bfloat16> ? 0xff80ff80u
                                                          : 0xfc00fc00u;
  return {{make_uint4(word, word, word, word)}};
}

// Which bits of a vector are its j-th logit.
template <class Logit>
__device__ __forceinline__ uint4 bits_of(int j) {
  const int word = sizeof(Logit) == 2 ? j / 2 : j;
  const uint32_t mask = sizeof(Logit) == 4 ? 0xffffffffu : j % 2 == 0 ? 0x0000ffffu : 0xffff0000u;
  return make_uint4(word == 0 ? mask : 0, word == 1 ? mask : 0, word == 2 ? mask : 0, word == 3 ? mask : 0);
}
template <class Logit>
__device__ __forceinline__ void leave_out(Packed<Logit, kPerVector<Logit>>& packed, uint4 bits) {
  const uint32_t none = minus_infinities<Logit>().vector[0].x;
  uint4& all = packed.vector[0];
  all = make_uint4((all.x & ~bits.x) | (none & bits.x), (all.y & ~bits.y) | (none & bits.y),
                   (all.z & ~bits.z) | (none & bits.z), (all.w & ~bits.w) | (none & bits.w));
}
// A vector without its j-th logit, which is then one that is not there: of several vectors, the k-th.
template <class Logit>
__device__ __forceinline__ void leave_out(Packed<Logit, kPerVector<Logit>>& packed, int j) {
  leave_out(packed, bits_of<Logit>(j));
}
template <class Logit, int steps>
__device__ __forceinline__ void leave_out(Packed<Logit, kPerVector<Logit>> (&packed)[steps], int k, int j) {
  const uint4 bits = bits_of<Logit>(j);
#pragma unroll
  for (int i = 0; i < steps; i++) {
    if (i == k) leave_out(packed[i], bits);
  }
}
__device__ __forceinline__ void leave_out(Packed<double, kPerVector<double>>& packed, int j) {
  uint4& all = packed.vector[0];
  all = j == 0 ? make_uint4(0, 0xfff00000u, all.z, all.w) : make_uint4(all.x, all.y, 0, 0xfff00000u);
}

// The largest logit of rows without a label to tell which it is, if it has more than half of the softmax; else NaN,
// which no logit is equal to.
template <class Real>
__device__ __forceinline__ Real sure_maximum(Real max, Real sum) {
  return is_sure(sum) ? max : static_cast<Real>(NAN);
}

// log(s + beyond), of a sum s of terms of which one is 1 within some ulp, or of none, and less than the last place of
// s: within 1 ulp, without what the library's logarithm does for numbers that are no such sums. s = 2^e m, of an m in
// [2/3, 4/3); the polynomial is the one of its degree whose relative error is least (2^-25). NaN of an s + beyond that
// is no number.
__device__ __forceinline__ float log_of_terms(float s, float beyond) {
  const int bits = __float_as_int(s), exponent = (bits - 0x3f2aaaab) & static_cast<int>(0xff800000);
  const float inverse_power = __int_as_float(0x3f800000 - exponent);
  const float f = fmaf(beyond, inverse_power, __int_as_float(bits - exponent) - 1);
  float sum = 0.14026351f;
  sum = fmaf(sum, f, -0.15388541f);
  sum = fmaf(sum, f, 0.13995808f);
  sum = fmaf(sum, f, -0.16415961f);
  sum = fmaf(sum, f, 0.20011169f);
  sum = fmaf(sum, f, -0.2500782f);
  sum = fmaf(sum, f, 0.33333197f);
  sum = fmaf(sum, f, -0.49999937f);
  const float log = fmaf(static_cast<float>(exponent), 8.2629582e-8f, fmaf(sum * f, f, f));  // log 2 / 2^23
  return s == 0 ? -INFINITY : log;
}
__device__ __forceinline__ double log_of_terms(double s, double beyond) { return log(s) + beyond / s; }

// What a row's sums are together with the logit of its label, which they are without. Where the label leads, all else
// that is in the sum is small beside its term, 1, and is never added to it before its logarithm is taken.
template <class Real>
struct LabelledSums {
  Real max, rest, label, sum, log_sum;  // rest: the terms of all but the label; label: its own
  Real inverse;                         // 1 / sum

  LabelledSums() = default;
  __device__ __forceinline__ LabelledSums(const SoftmaxSums<Real>& others, bool has_label, Real label_logit) {
    const bool leads = has_label && label_logit >= others.max;
    max = leads ? label_logit : others.max;
    const Exponentials<Real> exponentials(max);
    rest = leads ? others.sum * exponentials.term(others.max) : others.sum;
    label = has_label ? exponentials.term(label_logit) : Real(0);  // NaN of an infinite one, 1 if it leads
    sum = rest + label;
    inverse = reciprocal(sum);
    log_sum = log_of_terms(sum, leads ? rest - (sum - 1) : sum - sum);
  }

  // The softmax of the label less 1: what all others have of it, in which nothing cancels.
  __device__ __forceinline__ Real label_derivative() const { return (Real(0) - rest) * inverse; }
};

// The larger of numbers as they are stored, of 16 bits two at a time, where NaNs are passed over; and the smaller,
// which is NaN if one of them is.
__device__ __forceinline__ uint32_t larger_of(uint32_t a, uint32_t b, float) {
  return __float_as_uint(fmaxf(__uint_as_float(a), __uint_as_float(b)));
}
__device__ __forceinline__ uint32_t smaller_of(uint32_t a, uint32_t b, float) {
  return __float_as_uint(smaller_or_nan(__uint_as_float(a), __uint_as_float(b)));
}
template <class Pair, class Choose>
__device__ __forceinline__ uint32_t of_pairs(uint32_t a, uint32_t b, Choose choose) {
  Pair x, y;
  memcpy(&x, &a, sizeof(x));
  memcpy(&y, &b, sizeof(y));
  x = choose(x, y);
  memcpy(&a, &x, sizeof(a));
  return a;
}
__device__ __forceinline__ uint32_t larger_of(uint32_t a, uint32_t b, bfloat16) {
  return of_pairs<__nv_bfloat162>(a, b, [](auto x, auto y) { return __hmax2(x, y); });
}
__device__ __forceinline__ uint32_t smaller_of(uint32_t a, uint32_t b, bfloat16) {
  return of_pairs<__nv_bfloat162>(a, b, [](auto x, auto y) { return __hmin2_nan(x, y); });
}
__device__ __forceinline__ uint32_t larger_of(uint32_t a, uint32_t b, float16) {
  return of_pairs<__half2>(a, b, [](auto x, auto y) { return __hmax2(x, y); });
}
__device__ __forceinline__ uint32_t smaller_of(uint32_t a, uint32_t b, float16) {
  return of_pairs<__half2>(a, b, [](auto x, auto y) { return __hmin2_nan(x, y); });
}

// The largest number of all steps, as they are stored: two 16-bit numbers are one instruction, and none is unpacked and
// kept for when its exponential is wanted.
template <class Logit, int steps>
__device__ __forceinline__ float largest(const Packed<Logit, kPerVector<Logit>> (&packed)[steps]) {
  Packed<Logit, kPerVector<Logit>> largest = packed[0];
  uint4& all = largest.vector[0];
#pragma unroll
  for (int k = 1; k < steps; k++) {
    const uint4& more = packed[k].vector[0];
    all = make_uint4(larger_of(all.x, more.x, Logit()), larger_of(all.y, more.y, Logit()),
                     larger_of(all.z, more.z, Logit()), larger_of(all.w, more.w, Logit()));
  }
  all.x = larger_of(larger_of(all.x, all.y, Logit()), larger_of(all.z, all.w, Logit()), Logit());
  float x[kPerVector<Logit>];
  largest.numbers(x);
  return sizeof(Logit) == 2 ? fmaxf(x[0], x[1]) : x[0];
}

// `first` and the terms of all numbers, in four sums, for each waits for its last addition.
template <class Terms, class Logit, int steps>
__device__ __forceinline__ float sum_of_terms(const Terms& exponentials, float first,
                                              const Packed<Logit, kPerVector<Logit>> (&packed)[steps]) {
  float sums[4] = {first};
#pragma unroll
  for (int k = 0; k < steps; k++) {
    float x[kPerVector<Logit>];
    packed[k].numbers(x);
#pragma unroll
    for (int j = 0; j < kPerVector<Logit>; j++) sums[j % 4] += exponentials.term(x[j]);
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The maximum and the sum of exponentials of the logits seen so far, each a number that `Logit` can store.
template <class Logit>
class RunningSoftmax {
  using Real = Accumulator<Logit>;

 public:
  __device__ __forceinline__ RunningSoftmax() : exponentials_(no_logits<Real>().max) {}

  template <int count>
  __device__ __forceinline__ void add(const Real (&x)[count]) {
    Real highest = x[0];
#pragma unroll
    for (int i = 1; i < count; i++) highest = Maximum()(highest, x[i]);
    raise_to(highest);
    Real sums[2] = {0, 0};  // two, for each waits for its last addition
#pragma unroll
    for (int i = 0; i < count; i++) sums[i % 2] += exponentials_.term(x[i]);
    sum_.add(sums[0] + sums[1]);
  }

  // Of vectors as they are stored, of which no number is kept but in them.
  template <int steps>
  __device__ __forceinline__ void add(const Packed<Logit, kPerVector<Logit>> (&packed)[steps]) {
    if constexpr (std::is_same_v<Real, double>) {
      double x[steps * kPerVector<Logit>];
#pragma unroll
      for (int k = 0; k < steps; k++) packed[k].numbers(x + k * kPerVector<Logit>);
      add(x);
    } else {
      raise_to(largest(packed));
      sum_.add(sum_of_terms(exponentials_, 0.0f, packed));
    }
  }

  __device__ __forceinline__ SoftmaxSums<Real> sums() const {
    return {exponentials_.max, exponentials_.corrected(sum_.value())};
  }

 private:
  __device__ __forceinline__ void raise_to(Real highest) {
    if (!(highest > exponentials_.max)) return;
    const ExponentialsOf<Logit> higher(highest);
    sum_.scale(exponentials_.as_terms_of(higher));
    exponentials_ = higher;
  }

  ExponentialsOf<Logit> exponentials_;
  CompensatedSum<Real> sum_;
};

// Of logits in registers, and one more, relative to a maximum that has a further one.
template <class Logit, int steps>
__device__ __forceinline__ SoftmaxSums<float> softmax_sums(const Packed<Logit, kPerVector<Logit>> (&packed)[steps],
                                                           float one_more, float further = -INFINITY) {
  const float max = fmaxf(fmaxf(largest(packed), fmaxf(one_more, further)), no_logits<float>().max);
  const ExponentialsOf<Logit> exponentials(max);
  return {max, exponentials.corrected(sum_of_terms(exponentials, exponentials.term(one_more), packed))};
}

// The sums of a warp's logits, without one of the largest, whose term is 1: −1 of no logits. All lanes must call it.
// One of those that hold it looks for it, in the vectors that it may be in, and sums that vector once more.
template <class Logit, int steps>
__device__ __forceinline__ SoftmaxSums<float> sums_without_largest(
    const Packed<Logit, kPerVector<Logit>> (&packed)[steps], float one_more) {
  const float own = fmaxf(largest(packed), one_more);
  const float max = fmaxf(across_lanes(own, kWarp, Maximum()), no_logits<float>().max);
  const unsigned holding = __ballot_sync(kAllLanes, own == max);
  bool looks = static_cast<int>(threadIdx.x % kWarp) == __ffs(holding) - 1;
  const Exponentials<float> exponentials(max);
  float sum = exponentials.term(one_more);
  if (looks && sum == 1) {
    sum = 0;
    looks = false;
  }
#pragma unroll
  for (int k = 0; k < steps; k++) {
    float x[kPerVector<Logit>], sums[2] = {};
    packed[k].numbers(x);
#pragma unroll
    for (int j = 0; j < kPerVector<Logit>; j++) sums[j % 2] += exponentials.term(x[j]);
    float of_vector = sums[0] + sums[1];
    if (looks && of_vector >= 1) {
      of_vector = 0;
#pragma unroll
      for (int j = 0; j < kPerVector<Logit>; j++) {
        const float term = exponentials.term(x[j]);
        const bool found = looks && term == 1;
        of_vector += found ? 0.0f : term;
        looks = looks && !found;
      }
    }
    sum += of_vector;
  }
  return {max, across_lanes(sum, kWarp, Sum()) - (holding ? 0.0f : 1.0f)};
}

struct MergedWithoutLargest {
  __device__ __forceinline__ SoftmaxSums<float> operator()(SoftmaxSums<float> a, SoftmaxSums<float> b) const {
    const bool first = a.max >= b.max;
    const SoftmaxSums<float> higher = first ? a : b, lower = first ? b : a;
    return {higher.max, higher.sum + (1 + lower.sum) * exponential(lower.max - higher.max)};
  }
};
// One exponential a lane, as of `Merged`.
__device__ __forceinline__ SoftmaxSums<float> across_lanes(SoftmaxSums<float> sums, int lanes, MergedWithoutLargest) {
  const float max = across_lanes(sums.max, lanes, Maximum());
  const unsigned holding = __ballot_sync(kAllLanes, sums.max == max);
  const bool first = static_cast<int>(threadIdx.x % kWarp) == __ffs(holding) - 1;
  return {max, across_lanes(first ? sums.sum : (1 + sums.sum) * exponential(sums.max - max), lanes, Sum())};
}

}  // namespace jaxloss::gpu
