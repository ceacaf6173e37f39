// What the shared object says of itself; `jaxloss/_ffi/library.py` is the other side.
#include "cpu/kernels.h"
#include "handlers/targets.h"

namespace {

struct ExportedTarget {
  const char* name;
  const char* platform;
  XLA_FFI_Handler* handler;
};

// The calling convention: what operands, results and attributes each target has, in which order, and what they mean. To
// be raised with every change of it. It ends the name of each target, so that an executable that was compiled or
// exported with another number, and kept, asks for a target that is not there, and never hands its buffers to this one.
constexpr int64_t kCallingConvention = 2;

const std::vector<jaxloss::CallTarget>& all_targets() {
  static const std::vector<jaxloss::CallTarget> targets = [] {
    std::vector<jaxloss::CallTarget> all = jaxloss::cpu_targets();
#if defined(JAXLOSS_CUDA_ARCHITECTURES)
    for (auto& target : jaxloss::cuda_targets()) all.push_back(target);
#endif
    for (auto& target : all) target.name += "_v" + std::to_string(kCallingConvention);
    return all;
  }();
  return targets;
}

}  // namespace

#define JAXLOSS_EXPORT extern "C" __attribute__((visibility("default")))

JAXLOSS_EXPORT int64_t jaxloss_target_count() { return static_cast<int64_t>(all_targets().size()); }

JAXLOSS_EXPORT ExportedTarget jaxloss_target(int64_t i) {
  const jaxloss::CallTarget& target = all_targets().at(i);
  return {target.name.c_str(), target.platform, target.handler};
}

JAXLOSS_EXPORT int64_t jaxloss_calling_convention() { return kCallingConvention; }

JAXLOSS_EXPORT const char* jaxloss_version() { return JAXLOSS_VERSION; }

JAXLOSS_EXPORT const char* jaxloss_cpu_instruction_set() { return jaxloss::cpu::instruction_set().name; }

JAXLOSS_EXPORT const char* jaxloss_cpu_instruction_sets() { return jaxloss::cpu::instruction_sets(); }

// The GPU architectures that kernels were compiled for, separated by commas; empty for a build without CUDA.
JAXLOSS_EXPORT const char* jaxloss_cuda_architectures() {
#if defined(JAXLOSS_CUDA_ARCHITECTURES)
  return JAXLOSS_CUDA_ARCHITECTURES;
#else
  return "";
#endif
}

// The version of the CUDA runtime in it, as 1000 · major + 10 · minor; 0 for a build without CUDA.
JAXLOSS_EXPORT int64_t jaxloss_cuda_runtime() {
#if defined(JAXLOSS_CUDA_RUNTIME)
  return JAXLOSS_CUDA_RUNTIME;
#else
  return 0;
#endif
}
