// The parameters of an elementwise loss, as a thread goes along the elements of its rows.
#pragma once

#include "maths/elementwise.h"
#include "rows.h"

namespace jaxloss::gpu {

// A loss that computes longer on an element than it waits for it, and has long code: its kernels take elements as they
// lie next to each other, and are not unrolled beyond that. (By its operations on an H100: 128 a clock and
// multiprocessor, where memory brings 2 to 4 elements.)
template <class Loss>
constexpr bool kBoundByArithmetic = Loss::parameter_count > 2;
template <>
constexpr bool kBoundByArithmetic<LogCosh> = true;
template <>
constexpr bool kBoundByArithmetic<GaussianNll> = true;

// Whether a loss has a shorter form for most elements, `short_form()`; `takes_short_form` says of which vectors.
template <class Loss, class Prediction>
constexpr bool kHasShortForm = false;

// `number` holds the parameters of the element that the thread is at. One for all of a row stays in its register; of
// those for each feature, which many threads read, the next is in a cache.
template <class Real, int count>
class ParametersAlong {
 public:
  Real number[count];

  __device__ __forceinline__ ParametersAlong(const Parameters<Real, count>& parameters, int64_t rows)
      : parameters_(parameters), rows_(rows) {}

  __device__ __forceinline__ void to_row(int64_t row) {
#pragma unroll
    for (int k = 0; k < count; k++) {
      const Parameter<Real>& parameter = parameters_.of[k];
      const int64_t set = parameter.rows_per_set >= rows_ ? 0 : row / parameter.rows_per_set;
      if (parameter.per_feature) {
        of_row_[k] = parameter.numbers + set * parameters_.features;
      } else {
        number[k] = parameter.numbers[set];
      }
    }
  }

  // To the element of that row which is the `offset`-th of all rows'.
  __device__ __forceinline__ void to_element(int64_t offset) {
    if (parameters_.features == 0) return;
    feature_ = offset % parameters_.features;
    read_features();
  }

  __device__ __forceinline__ void to_next_element() {
    if (parameters_.features == 0) return;
    if (++feature_ == parameters_.features) feature_ = 0;
    read_features();
  }

 private:
  __device__ __forceinline__ void read_features() {
#pragma unroll
    for (int k = 0; k < count; k++) {
      if (parameters_.of[k].per_feature) number[k] = of_row_[k][feature_];
    }
  }

  const Parameters<Real, count>& parameters_;
  const Real* of_row_[count];
  int64_t rows_, feature_ = 0;
};

template <class Real>
struct ParametersAlong<Real, 0> {
  const Real* number = nullptr;

  __device__ __forceinline__ ParametersAlong(const Parameters<Real, 0>&, int64_t) {}
  __device__ __forceinline__ void to_row(int64_t) {}
  __device__ __forceinline__ void to_element(int64_t) {}
  __device__ __forceinline__ void to_next_element() {}
};

}  // namespace jaxloss::gpu
