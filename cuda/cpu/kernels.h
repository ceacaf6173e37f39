// The CPU kernels as the handlers see them: for every task one function over a range of rows, and one such table for
// every instruction set that this library was compiled for.
#pragma once

#include <cstdint>

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
  void run(const T& task, int64_t begin, int64_t end) const {
    static_cast<const Kernel<T>&>(*this).run(task, begin, end);
  }
};

using Kernels = KernelTable<Tasks>;

struct InstructionSet {
  const char* name;
  const Kernels* kernels;
};

// The widest one that this processor has; JAXLOSS_CPU_INSTRUCTION_SET=baseline|avx2|avx512 asks for a narrower one.
const InstructionSet& instruction_set();

// The names of all that this processor has, the widest first, separated by commas.
const char* instruction_sets();

}  // namespace jaxloss::cpu
