// The kernels of cross entropy without options.
#include "cpu/cross_entropy.h"

#include "cpu/kernels.h"

namespace jaxloss::JAXLOSS_ISA {

// Everything that these kernels call becomes part of them: what is done at each step of a row is a small function that
// would otherwise be called there, for a third more time.
#if !defined(JAXLOSS_FLATTEN)
#define JAXLOSS_FLATTEN __attribute__((flatten))
#endif

extern const cpu::CrossEntropyKernels cross_entropy_kernels;
constexpr cpu::CrossEntropyKernels cross_entropy_kernels([](const auto& rows, int64_t begin, int64_t end)
                                                             JAXLOSS_FLATTEN { cross_entropy_rows(rows, begin, end); });

extern const cpu::CrossEntropyGradientKernels cross_entropy_gradient_kernels;
constexpr cpu::CrossEntropyGradientKernels cross_entropy_gradient_kernels([](const auto& rows, int64_t begin,
                                                                             int64_t end) JAXLOSS_FLATTEN {
  cross_entropy_gradient_rows(rows, begin, end);
});

}  // namespace jaxloss::JAXLOSS_ISA
