// The kernels of cross entropy with options.
#include "cpu/cross_entropy_options.h"

#include "cpu/kernels.h"

namespace jaxloss::JAXLOSS_ISA {

extern const cpu::CrossEntropyOptionKernels cross_entropy_option_kernels;
constexpr cpu::CrossEntropyOptionKernels cross_entropy_option_kernels([](const auto& rows, int64_t begin, int64_t end) {
  cross_entropy_option_rows(rows, begin, end);
});

}  // namespace jaxloss::JAXLOSS_ISA
