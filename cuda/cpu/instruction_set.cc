// Chooses, once, the instruction set that the CPU kernels run with.
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

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

struct Candidate {
  InstructionSet set;
  bool runs;  // on this processor
};

// The widest first.
std::vector<Candidate> candidates() {
  std::vector<Candidate> all;
#if defined(JAXLOSS_X86)
  __builtin_cpu_init();
  all.push_back({{"avx512", &avx512::kernels},
                 __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")});
  all.push_back({{"avx2", &avx2::kernels}, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
  all.push_back({{"baseline", &baseline::kernels}, true});
  return all;
}

InstructionSet chosen() {
  const char* wanted = std::getenv("JAXLOSS_CPU_INSTRUCTION_SET");
  const bool any = wanted == nullptr || *wanted == '\0';
  for (const Candidate& candidate : candidates()) {
    if (candidate.runs && (any || std::strcmp(wanted, candidate.set.name) == 0)) return candidate.set;
  }
  return {"baseline", &baseline::kernels};
}

std::string usable_names() {
  std::string names;
  for (const Candidate& candidate : candidates()) {
    if (candidate.runs) names += (names.empty() ? "" : ",") + std::string(candidate.set.name);
  }
  return names;
}

}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet chosen_once = chosen();
  return chosen_once;
}

const char* instruction_sets() {
  static const std::string names = usable_names();
  return names.c_str();
}

}  // namespace cpu
}  // namespace jaxloss
