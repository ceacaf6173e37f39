// The kernels of elementwise losses.
#include "cpu/elementwise.h"

#include "cpu/kernels.h"

namespace jaxloss::JAXLOSS_ISA {

extern const cpu::ElementwiseKernels elementwise_kernels;
constexpr cpu::ElementwiseKernels elementwise_kernels([](const auto& task, int64_t begin, int64_t end) {
  if (task.rows.gradient) {
    elementwise_parts<true>(task.loss, task.rows, begin, end);
  } else {
    elementwise_parts<false>(task.loss, task.rows, begin, end);
  }
});

}  // namespace jaxloss::JAXLOSS_ISA
