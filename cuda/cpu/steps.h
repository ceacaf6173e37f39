// A row in steps of a vector: what is done to each of its elements, and sums of it.
#pragma once

#include "cpu/functions.h"

namespace jaxloss::JAXLOSS_ISA {

// One arithmetic value per step: a vector for what computes in float, a scalar for float64.
template <class Stored>
struct Step {
  using Value = Vector;
  static constexpr int64_t width = kLanes;

  JAXLOSS_INLINE static Vector load(const Stored* from) {
    return {load_register(from), load_register(from + kRegisterLanes)};
  }
  JAXLOSS_INLINE static void store(Stored* to, Vector value) {
    store_register(to, value.registers[0]);
    store_register(to + kRegisterLanes, value.registers[1]);
  }
};

template <>
struct Step<double> {
  using Value = double;
  static constexpr int64_t width = 1;

  JAXLOSS_INLINE static double load(const double* from) { return *from; }
  JAXLOSS_INLINE static void store(double* to, double value) { *to = value; }
};

template <class Stored>
using ValueOf = typename Step<Stored>::Value;

// A step of a row that is shorter than one: the lanes beyond `count` are zeros, and are not stored.
template <class Stored>
JAXLOSS_INLINE ValueOf<Stored> load_step(const Stored* from, int64_t count) {
  Stored padded[Step<Stored>::width];
  if (count != Step<Stored>::width) {
    std::memset(padded, 0, sizeof(padded));
    std::memcpy(padded, from, count * sizeof(Stored));
    from = padded;
  }
  return Step<Stored>::load(from);
}
template <class Stored>
JAXLOSS_INLINE void store_step(Stored* to, ValueOf<Stored> value, int64_t count) {
  if (count == Step<Stored>::width) return Step<Stored>::store(to, value);
  Stored padded[Step<Stored>::width];
  Step<Stored>::store(padded, value);
  std::memcpy(to, padded, count * sizeof(Stored));
}

// One number of a row.
template <class Stored>
JAXLOSS_INLINE Accumulator<Stored> number(const Stored* x) {
  if constexpr (std::is_same_v<Stored, Accumulator<Stored>>) {
    return *x;
  } else {
    const Stored padded[kRegisterLanes] = {*x};
    return load_register(padded)[0];
  }
}

// The lanes from the first to the last but one, zeros for the others.
JAXLOSS_INLINE Vector only_lanes(Vector x, int64_t first, int64_t end) {
  const Integers number = lane_numbers();
  const Integers wanted =
      (number >= Integers(static_cast<int32_t>(first))) & (number < Integers(static_cast<int32_t>(end)));
  return select(wanted, x, Vector(0.0));
}
JAXLOSS_INLINE double only_lanes(double x, int64_t, int64_t) { return x; }

// 0 in one lane.
JAXLOSS_INLINE Vector without_lane(Vector x, int64_t lane) {
  return select(lane_numbers() == Integers(static_cast<int32_t>(lane)), Vector(0.0), x);
}
JAXLOSS_INLINE double without_lane(double, int64_t) { return 0; }

// A row of `width` elements in steps. If it is not a multiple of them, it has an odd step besides the whole ones, which
// ends where the row ends and goes over elements of the step before once more: whole vectors are much quicker than a
// part of one. Only in a row shorter than a step does the odd step have fewer elements.
template <class Stored>
struct Steps {
  static constexpr int64_t step = Step<Stored>::width;
  int64_t width;

  JAXLOSS_INLINE int64_t whole() const { return width - width % step; }  // what whole steps cover
  JAXLOSS_INLINE bool has_odd() const { return width % step != 0; }
  JAXLOSS_INLINE int64_t odd() const { return width > step ? width - step : 0; }  // where it begins
  JAXLOSS_INLINE int64_t odd_count() const { return width > step ? step : width; }
  JAXLOSS_INLINE int64_t odd_done() const { return whole() - odd(); }  // how many of its elements whole steps cover
};

// `body(arguments…)`, as a call: the odd step is not worth a second copy of the body. It is given a copy of the body's
// numbers, so that what they are in a loop is known to change in no call, and stays in registers.
template <class Body, class... Arguments>
__attribute__((noinline)) auto called(const Body& body, Arguments&&... arguments) {
  return body(arguments...);
}

// Calls `body(index of the first element, count of elements)` for every step of a row. Some elements may be given
// twice: the body must not write to what it reads.
template <class Stored, class Body>
JAXLOSS_INLINE void for_each_step(int64_t width, Body body) {
  const Steps<Stored> steps{width};
  for (int64_t i = 0; i < steps.whole(); i += steps.step) body(i, steps.step);
  if (steps.has_odd()) called(Body(body), steps.odd(), steps.odd_count());
}

// Vectors are added up in float over so many steps, then in doubles: small terms beside a large one, all rounded the
// same way, cost a sum 3 units in its last place, whatever the length of the row.
constexpr int64_t kStepsPerSum = 8;

// The sum of values in doubles.
template <class Value>
struct WideSumOf;
template <>
struct WideSumOf<Vector> : WideSum {};
template <>
struct WideSumOf<double> {
  double sum = 0;

  JAXLOSS_INLINE void add(double x) { sum += x; }
  JAXLOSS_INLINE double total() const { return sum; }
};

// For every step, `body(index, count, values)` gives some values, of which all are summed over the row, and
// `store(index, count, values)` may write them to where they were read from.
template <class Stored, int n, class Body, class Store>
JAXLOSS_INLINE void sums_over_steps(int64_t width, double (&total)[n], Body body, Store store) {
  using Value = ValueOf<Stored>;
  const Steps<Stored> steps{width};
  Value values[n], odd[n];
  WideSumOf<Value> wide[n];
  if (steps.has_odd()) {
    called(Body(body), steps.odd(), steps.odd_count(), odd);  // before anything is stored
    for (int k = 0; k < n; k++) wide[k].add(only_lanes(odd[k], steps.odd_done(), steps.odd_count()));
  }
  for (int64_t i = 0; i < steps.whole();) {
    const int64_t block = i + steps.step * kStepsPerSum, end = block < steps.whole() ? block : steps.whole();
    Value sums[n];
    for (int k = 0; k < n; k++) sums[k] = Value(0);
    for (; i < end; i += steps.step) {
      body(i, steps.step, values);
      for (int k = 0; k < n; k++) sums[k] = sums[k] + values[k];
      store(i, steps.step, values);
    }
    for (int k = 0; k < n; k++) wide[k].add(sums[k]);
  }
  for (int k = 0; k < n; k++) total[k] = wide[k].total();
  if (steps.has_odd()) store(steps.odd(), steps.odd_count(), odd);
}

// The sum of `body(index, count)` over the elements of a row.
template <class Stored, class Body>
JAXLOSS_INLINE double sum_over_steps(int64_t width, Body body) {
  double total[1];
  sums_over_steps<Stored>(
      width, total,
      [&](int64_t i, int64_t count, ValueOf<Stored>(&value)[1]) JAXLOSS_IN_LOOP { value[0] = body(i, count); },
      [](int64_t, int64_t, const auto&) JAXLOSS_IN_LOOP {});
  return total[0];
}

// Writes `body(index, count)` to `results`, which may be what the body reads.
template <class Stored, class Body>
JAXLOSS_INLINE void store_steps(Stored* results, int64_t width, Body body) {
  const Steps<Stored> steps{width};
  ValueOf<Stored> odd{};
  if (steps.has_odd()) odd = called(Body(body), steps.odd(), steps.odd_count());
  for (int64_t i = 0; i < steps.whole(); i += steps.step) Step<Stored>::store(results + i, body(i, steps.step));
  if (steps.has_odd()) store_step(results + steps.odd(), odd, steps.odd_count());
}

}  // namespace jaxloss::JAXLOSS_ISA
