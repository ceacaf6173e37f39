// The weights of consecutive rows, where one weight may stand for several: a division for the first row, none for the
// others.
#pragma once

#include "rows.h"

namespace jaxloss::JAXLOSS_ISA {

template <class Real>
class RowWeights {
 public:
  template <class Rows>
  JAXLOSS_INLINE RowWeights(const Rows& rows, int64_t first_row) : rows_per_weight_(rows.rows_per_weight) {
    const int64_t index = rows_per_weight_ == 1 ? first_row : first_row / rows_per_weight_;
    weight_ = rows.row_weight + index;
    left_ = rows_per_weight_ - (first_row - index * rows_per_weight_);
  }

  JAXLOSS_INLINE Real next() {
    const Real weight = *weight_;
    if (--left_ == 0) {
      weight_++;
      left_ = rows_per_weight_;
    }
    return weight;
  }

 private:
  const Real* weight_;
  int64_t rows_per_weight_, left_;
};

}  // namespace jaxloss::JAXLOSS_ISA
