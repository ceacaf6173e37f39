// Chooses, once, the instruction set that the CPU kernels run with.
#include <cstdlib>
#include <cstring>

#include "cpu/kernels.h"

namespace jaxloss {

namespace baseline {
extern const cpu::Kernels kernels;
}
#if defined(JAXLOSS_X86)
namespace avx2 {
extern const cpu::Kernels kernels;
}
namespace avx512 {
extern const cpu::Kernels kernels;
}
#endif

namespace cpu {
namespace {

[[maybe_unused]] bool allowed(const char* name) {
  const char* wanted = std::getenv("JAXLOSS_CPU_INSTRUCTION_SET");
  return wanted == nullptr || *wanted == '\0' || std::strcmp(wanted, name) == 0;
}

InstructionSet chosen() {
#if defined(JAXLOSS_X86)
  if (allowed("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return {"avx512", &avx512::kernels};
  }
  if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return {"avx2", &avx2::kernels};
  }
#endif
  return {"baseline", &baseline::kernels};
}

}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet chosen_once = chosen();
  return chosen_once;
}

}  // namespace cpu
}  // namespace jaxloss
