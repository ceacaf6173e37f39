// The CPU kernels as the handlers see them: for every task one function over a range of rows. A family of losses is a
// file of its own to compile, with a table of its functions; there are such tables for every instruction set that this
// library was compiled for.
#pragma once

#include <cstdint>
#include <type_traits>

#include "tasks.h"

namespace jaxloss::cpu {

template <class Task>
struct Kernel {
  void (*run)(const Task& task, int64_t begin, int64_t end);
};

template <class TaskList>
struct KernelTable;
template <class... Task>
struct KernelTable<List<Task...>> : Kernel<Task>... {
  template <class T>
  static constexpr bool has = (std::is_same_v<T, Task> || ...);

  // Of a generic lambda, made for every task.
  template <class Function>
  constexpr explicit KernelTable(Function function) : Kernel<Task>{function}... {}

  template <class T>
  void run(const T& task, int64_t begin, int64_t end) const {
    static_cast<const Kernel<T>&>(*this).run(task, begin, end);
  }
};

using ElementwiseKernels = KernelTable<ElementwiseTasks>;
using CrossEntropyKernels = KernelTable<CrossEntropyTasks>;
using CrossEntropyGradientKernels = KernelTable<CrossEntropyGradientTasks>;
using CrossEntropyOptionKernels = KernelTable<CrossEntropyOptionTasks>;
using DivergenceKernels = KernelTable<DivergenceTasks>;

struct Kernels {
  const ElementwiseKernels* elementwise;
  const CrossEntropyKernels* cross_entropy;
  const CrossEntropyGradientKernels* cross_entropy_gradient;
  const CrossEntropyOptionKernels* cross_entropy_options;
  const DivergenceKernels* divergence;

  template <class Task>
  void run(const Task& task, int64_t begin, int64_t end) const {
    if constexpr (ElementwiseKernels::has<Task>) {
      elementwise->run(task, begin, end);
    } else if constexpr (CrossEntropyKernels::has<Task>) {
      cross_entropy->run(task, begin, end);
    } else if constexpr (CrossEntropyGradientKernels::has<Task>) {
      cross_entropy_gradient->run(task, begin, end);
    } else if constexpr (CrossEntropyOptionKernels::has<Task>) {
      cross_entropy_options->run(task, begin, end);
    } else {
      divergence->run(task, begin, end);
    }
  }
};

struct InstructionSet {
  const char* name;
  const Kernels* kernels;
};

// The widest one that this processor has; JAXLOSS_CPU_INSTRUCTION_SET=baseline|avx2|avx512 asks for a narrower one.
const InstructionSet& instruction_set();

// The names of all that this processor has, the widest first, separated by commas.
const char* instruction_sets();

}  // namespace jaxloss::cpu
