// What rows have one number of each, a lane a row.
#pragma once

#include "cpu/steps.h"
#include "rows.h"

namespace jaxloss::JAXLOSS_ISA {

template <class Number>
using LanesOf = std::conditional_t<std::is_same_v<Number, float>, Vector, Integers>;

// (A call: there are many, and it is not the usual case.)
template <class Number>
__attribute__((noinline)) LanesOf<Number> different_numbers_of_lanes(const RowNumbers<Number>& numbers, int64_t row,
                                                                     int64_t count) {
  const int64_t rows_per_number = numbers.rows_per_number, first = set_of_row(rows_per_number, row);
  const Number* number = numbers.number + first;
  int64_t left = (first + 1) * rows_per_number - row;
  Number of_lanes[kLanes];
  for (int64_t i = 0; i < kLanes; i++) {
    of_lanes[i] = *number;
    if (i + 1 < count && --left == 0) {
      number++;
      left = rows_per_number;
    }
  }
  LanesOf<Number> lanes;
  std::memcpy(&lanes, of_lanes, sizeof(lanes));
  return lanes;
}
// The numbers of the next `count` rows; lanes beyond have one of them.
template <class Number>
JAXLOSS_INLINE LanesOf<Number> numbers_of_lanes(const RowNumbers<Number>& numbers, int64_t row, int64_t count) {
  if (!numbers.given()) return LanesOf<Number>(numbers.otherwise);
  const int64_t first = set_of_row(numbers.rows_per_number, row);
  if (first == set_of_row(numbers.rows_per_number, row + count - 1)) return LanesOf<Number>(numbers.number[first]);
  return different_numbers_of_lanes(numbers, row, count);
}
JAXLOSS_INLINE Integers index_lanes(const int32_t* index, int64_t count) {
  int32_t of_lanes[kLanes] = {};
  std::memcpy(of_lanes, index, count * sizeof(int32_t));
  Integers lanes;
  std::memcpy(&lanes, of_lanes, sizeof(lanes));
  return lanes;
}
JAXLOSS_INLINE void store_lanes(float* to, Vector lanes, int64_t count) { store_step(to, lanes, count); }
JAXLOSS_INLINE void store_lanes(int32_t* to, Integers lanes, int64_t count) {
  std::memcpy(to, &lanes, count * sizeof(int32_t));
}
// What the labels of rows are: outside the classes, nothing.
struct LabelLanes {
  Integers index, held;
  Vector share, logit{0.0};

  JAXLOSS_INLINE LabelLanes(Integers index_, Integers classes, Vector share_)
      : index(index_), held((index_ >= Integers(0)) & (index_ < classes)), share(share_) {}
  JAXLOSS_INLINE Integers is(int64_t j) const { return index == Integers(static_cast<int32_t>(j)); }
};

}  // namespace jaxloss::JAXLOSS_ISA
