// All CPU kernels for one instruction set. This file is compiled once for each, as JAXLOSS_ISA, with its own flags.
#include "cpu/kernels.h"

#include "cpu/cross_entropy.h"
#include "cpu/cross_entropy_options.h"
#include "cpu/divergence.h"
#include "cpu/elementwise.h"

namespace jaxloss::JAXLOSS_ISA {

// Everything that these kernels call becomes part of them: what is done at each step of a row is a small function that
// would otherwise be called there, for a third more time. (The others compile for minutes that way.)
#if !defined(JAXLOSS_FLATTEN)
#define JAXLOSS_FLATTEN __attribute__((flatten))
#endif

template <class Loss, class Prediction, class Target>
void run(const ElementwiseTask<Loss, Prediction, Target>& task, int64_t begin, int64_t end) {
  if (task.rows.gradient) {
    elementwise_parts<true>(task.loss, task.rows, begin, end);
  } else {
    elementwise_parts<false>(task.loss, task.rows, begin, end);
  }
}

template <class Logit, class Target>
JAXLOSS_FLATTEN void run(const CrossEntropyRows<Logit, Target>& rows, int64_t begin, int64_t end) {
  cross_entropy_rows(rows, begin, end);
}

template <class Logit, class Target>
JAXLOSS_FLATTEN void run(const CrossEntropyGradientRows<Logit, Target>& rows, int64_t begin, int64_t end) {
  cross_entropy_gradient_rows(rows, begin, end);
}

template <class Logit, class Target>
void run(const CrossEntropyOptionRows<Logit, Target>& rows, int64_t begin, int64_t end) {
  cross_entropy_option_rows(rows, begin, end);
}

template <class Divergence, class Logit, class Teacher>
void run(const DivergenceRows<Divergence, Logit, Teacher>& rows, int64_t begin, int64_t end) {
  divergence_rows(rows, begin, end);
}

template <class... Task>
constexpr cpu::KernelTable<List<Task...>> table_of(List<Task...>) {
  return {{static_cast<void (*)(const Task&, int64_t, int64_t)>(&run)}...};
}

extern const cpu::Kernels kernels;
constexpr cpu::Kernels kernels = table_of(Tasks{});

}  // namespace jaxloss::JAXLOSS_ISA
