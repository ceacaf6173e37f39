// What a kernel is given. Every array is contiguous; a null result is one that is not asked for.
//
// A row weight of −0.0 marks a row that is masked (`is_masked`): nothing in it counts, and where rows are long
// nothing of it is read; zeros are written for it. A weight of +0.0 is an ordinary number: its row's loss is still
// wanted, for the gradient of the weight.
#pragma once

#include <type_traits>

#include "maths/types.h"

namespace jaxloss {

// A number of a loss beside its elements, such as a threshold or class weights: one for a whole row, or one for each
// index of the prediction's last axis. Sets of rows share it.
template <class Real>
struct Parameter {
  const Real* numbers;   // [rows / rows_per_set], or [rows / rows_per_set, features]
  int64_t rows_per_set;  // at least 1
  bool per_feature;
};
template <class Real, int count>
struct Parameters {
  Parameter<Real> of[count];
  int64_t features;  // the size of the prediction's last axis; 0 if no parameter has a number for each
};
template <class Real>
struct Parameters<Real, 0> {};

// Rows of an elementwise loss, each cut into `parts` pieces of `part_width(...)` elements whose losses are summed
// apart. Element i of a row has index (row · width + i) % features of the last axis.
template <class Prediction, class Target, int parameter_count>
struct ElementwiseRows {
  using Real = Accumulator<Prediction>;
  const Prediction* prediction;  // [rows, width]
  const Target* target;          // [rows, width]
  const Real* row_weight;        // [rows]
  Real* loss;                    // [rows, parts], unweighted
  Prediction* gradient;          // [rows, width], times the row's weight; or null
  int64_t rows, width, parts;
  Parameters<Real, parameter_count> parameters;
};

// Rows of logits with one class index a row.
struct ClassIndices {
  const int32_t* index;  // [rows]; outside [0, classes): the row's loss is NaN, its gradient 0, nothing is read
};

// Rows of logits with one probability a class.
template <class Stored_>
struct ClassProbabilities {
  using Stored = Stored_;
  const Stored* probability;  // [rows, classes]
};

// Out of line: a division of 64 bits takes a GPU as long as a step of a row, and few calls need one.
#ifdef __CUDACC__
__device__ __noinline__ static int64_t divided(int64_t a, int64_t b) { return a / b; }
#endif

// Which set of `rows_per_set` rows a row is in.
JAXLOSS_INLINE int64_t set_of_row(int64_t rows_per_set, int64_t row) {
  if (rows_per_set == 1) return row;
  if (row < rows_per_set) return 0;
#ifdef __CUDA_ARCH__
  return divided(row, rows_per_set);
#else
  return row / rows_per_set;
#endif
}

// The number; NaN where the condition is NaN.
template <class Real>
JAXLOSS_INLINE Real where_a_number(Real condition, Real number) {
  return condition == condition ? number : condition;
}

template <class Logit, class Target>
struct CrossEntropyRows {
  using Real = Accumulator<Logit>;
  const Logit* logits;  // [rows, classes]
  Target target;
  const Real* row_weight;  // [rows / rows_per_weight]
  Real* loss;              // [rows], unweighted; null where `sums` are wanted instead, on a GPU
  Real* max;               // [rows] or null
  Real* log_sum;           // [rows] or null: log Σ exp(x − max)
  Logit* gradient;         // [rows, classes], times the row's weight; or null
  int64_t rows, classes, rows_per_weight;
  Real ceiling;          // −log clip, or infinity
  Real* sums = nullptr;  // [parts]: of all rows' losses, in parts of any rows
  int64_t parts = 0;

  JAXLOSS_INLINE Real weight_of(int64_t row) const { return row_weight[set_of_row(rows_per_weight, row)]; }
  // The results of a row; of one that is masked all are 0. One without a softmax has no loss, also where no class
  // has a probability.
  JAXLOSS_INLINE void store_results(int64_t row, Real loss_of_row, Real max_of_row, Real log_sum_of_row) const {
    if constexpr (!std::is_same_v<Target, ClassIndices>) loss_of_row = where_a_number(log_sum_of_row, loss_of_row);
    loss[row] = loss_of_row;
    if (max) max[row] = max_of_row;
    if (log_sum) log_sum[row] = log_sum_of_row;
  }
};

// The second half of `CrossEntropyRows` alone: the gradient of rows whose max and log_sum are known (of a whole row,
// where the classes here are a slice of it).
template <class Logit, class Target>
struct CrossEntropyGradientRows {
  using Real = Accumulator<Logit>;
  const Logit* logits;  // [rows, classes]
  Target target;
  const Real* row_weight;  // [rows / rows_per_weight]
  const Real* max;         // [rows]
  const Real* log_sum;     // [rows]
  const Real* target_sum;  // [rows]: what the target's probabilities sum to, 1 for a class index, 0 for an invalid one
  Logit* gradient;         // [rows, classes]
  int64_t rows, classes, rows_per_weight;

  JAXLOSS_INLINE Real weight_of(int64_t row) const { return row_weight[set_of_row(rows_per_weight, row)]; }
};

// One number for every `rows_per_number` rows; `otherwise` for all of them where none is given.
template <class Number>
struct RowNumbers {
  Number otherwise;
  const Number* number = nullptr;
  int64_t rows_per_number = 1;

  JAXLOSS_INLINE bool given() const { return number != nullptr; }
  JAXLOSS_INLINE bool one_per_row() const { return given() && rows_per_number == 1; }
  JAXLOSS_INLINE Number of(int64_t row) const { return given() ? number[set_of_row(rows_per_number, row)] : otherwise; }
};

// What rows with options have whatever the types of their logits and target.
template <class Real_>
struct CrossEntropyOptions {
  using Real = Real_;
  RowNumbers<Real> row_weight{1};
  int64_t rows = 0, classes = 0;

  RowNumbers<int32_t> second_label{-1};
  RowNumbers<Real> mix{1}, label_smoothing{0}, z_loss{0}, margin{0}, temperature{1};
  RowNumbers<Real> softcap{1};  // none unless given
  RowNumbers<int32_t> num_classes{0};
  const Real* class_weights = nullptr;  // [rows / rows_per_class_weights, classes]
  int64_t rows_per_class_weights = 1;
  int64_t smoothed_classes = 0;  // that a row's smoothing is shared by, here or in other slices of the row
  Real ceiling = 0;              // −log clip, or infinity

  // Of whole rows, where the classes here are a slice of them; null where they are to be found.
  const Real *known_max = nullptr, *known_log_sum = nullptr, *known_total = nullptr;  // [rows]

  // Where the gradient is that of log-sum-exps and entropies too: what theirs is multiplied by, as the losses' is by
  // the row's weight. Null where it is that of the losses alone.
  const Real *of_lse = nullptr, *of_entropy = nullptr;  // [rows]

  Real *loss = nullptr, *max = nullptr, *log_sum = nullptr;  // [rows] or null
  Real *nll = nullptr, *entropy = nullptr;                   // [rows] or null
  int32_t *predicted = nullptr, *rank = nullptr;             // [rows] or null
  Real* sums = nullptr;  // [parts]: of all rows' losses, in parts of any rows; then `loss` is null. On a GPU
  int64_t parts = 0;

  JAXLOSS_INLINE Real weight_of(int64_t row) const { return row_weight.of(row); }
  JAXLOSS_INLINE int64_t classes_of(int64_t row) const {
    const int64_t count = num_classes.given() ? num_classes.of(row) : classes;
    return count < 0 ? 0 : count > classes ? classes : count;
  }

  // Takes the options one after the other, in the order of the table in `jaxloss/_spec.py`, by which a call has a bit
  // for each.
  template <class Operands>
  void take_options(Operands& operands) {
    operands.take("second_label", second_label);
    operands.take("mix", mix);
    operands.take_classes("class_weights", class_weights, rows_per_class_weights);
    operands.take("label_smoothing", label_smoothing);
    operands.take("z_loss", z_loss);
    operands.take("softcap", softcap);
    operands.take("margin", margin);
    operands.take("temperature", temperature);
    operands.take("num_classes", num_classes);
  }
};

// `CrossEntropyRows` and `CrossEntropyGradientRows` with everything that a loss may ask for besides: see
// `maths/cross_entropy_options.h` for what the options mean.
template <class Logit, class Target>
struct CrossEntropyOptionRows : CrossEntropyOptions<Accumulator<Logit>> {
  using Real = Accumulator<Logit>;
  const Logit* logits = nullptr;  // [rows, classes]
  Target target = {};
  Logit* gradient = nullptr;  // [rows, classes] or null
};

// The teacher's logits, of which it is the softmax that counts; `ClassProbabilities` are a teacher too.
template <class Stored_>
struct TeacherLogits {
  using Stored = Stored_;
  const Stored* logits;  // [rows, classes]
};

// Rows of a student's logits, each with a teacher's distribution over the same classes.
template <class Divergence, class Logit, class Teacher>
struct DivergenceRows {
  using Real = Accumulator<Logit>;
  const Logit* logits;  // [rows, classes]
  Teacher teacher;
  RowNumbers<Real> row_weight;
  RowNumbers<Real> scale;      // what logits are multiplied by: 1 / temperature
  RowNumbers<Real> parameter;  // of the divergence; null if it has none
  Real* loss;                  // [rows], unweighted
  Real* max;                   // [rows], as all that follow
  Real* log_sum;               // log Σ exp((x − max) · scale)
  Real* teacher_max;           // the same two of the teacher's logits; null for probabilities
  Real* teacher_log_sum;
  Real* total;      // Σ φ′: see maths/divergence.h
  Logit* gradient;  // [rows, classes], times the row's weight; or null
  int64_t rows, classes;
};

JAXLOSS_INLINE bool is_masked(float weight) { return weight == 0.0f && __builtin_signbit(weight); }
JAXLOSS_INLINE bool is_masked(double weight) { return weight == 0.0 && __builtin_signbit(weight); }

// How many elements each part of an elementwise row holds (the last may hold fewer).
JAXLOSS_INLINE int64_t part_width(int64_t width, int64_t parts) {
  const int64_t even = (width + parts - 1) / parts;
  return (even + 63) / 64 * 64;
}

}  // namespace jaxloss
