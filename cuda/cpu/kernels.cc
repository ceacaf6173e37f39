// All CPU kernels for one instruction set. The files that they are in, and this one, are compiled once for each, as
// JAXLOSS_ISA, with its own flags.
#include "cpu/kernels.h"

namespace jaxloss::JAXLOSS_ISA {

extern const cpu::ElementwiseKernels elementwise_kernels;
extern const cpu::CrossEntropyKernels cross_entropy_kernels;
extern const cpu::CrossEntropyGradientKernels cross_entropy_gradient_kernels;
extern const cpu::CrossEntropyOptionKernels cross_entropy_option_kernels;
extern const cpu::DivergenceKernels divergence_kernels;

extern const cpu::Kernels kernels;
constexpr cpu::Kernels kernels = {&elementwise_kernels, &cross_entropy_kernels, &cross_entropy_gradient_kernels,
                                  &cross_entropy_option_kernels, &divergence_kernels};

}  // namespace jaxloss::JAXLOSS_ISA
