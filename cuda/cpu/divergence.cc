// The kernels of divergences.
#include "cpu/divergence.h"

#include "cpu/kernels.h"

namespace jaxloss::JAXLOSS_ISA {

extern const cpu::DivergenceKernels divergence_kernels;
constexpr cpu::DivergenceKernels divergence_kernels([](const auto& rows, int64_t begin, int64_t end) {
  divergence_rows(rows, begin, end);
});

}  // namespace jaxloss::JAXLOSS_ISA
