// The handlers on the CPU: a task's rows are shared out over XLA's own thread pool.
#include <algorithm>

#include "cpu/kernels.h"
#include "handlers/parallel.h"
#include "handlers/targets.h"

namespace jaxloss {
namespace {

// What one thread should get at least, in elements: below that, handing work over costs more than it saves.
constexpr int64_t kElementsPerShare = 1 << 14;

// Short rows are worked on in groups, of as many as a vector has lanes at most: shares are of whole ones.
constexpr int64_t kRowsPerGroup = 32;

int64_t units_per_share(int64_t width) {
  const int64_t units = std::max<int64_t>(1, kElementsPerShare / std::max<int64_t>(1, width));
  return units < kRowsPerGroup ? units : units / kRowsPerGroup * kRowsPerGroup;
}

template <class Loss, class Prediction, class Target>
std::pair<int64_t, int64_t> units_and_width(const ElementwiseTask<Loss, Prediction, Target>& task) {
  return {task.rows.rows * task.rows.parts, part_width(task.rows.width, task.rows.parts)};
}

template <class Rows>
std::pair<int64_t, int64_t> units_and_width(const Rows& rows) {
  return {rows.rows, rows.classes};
}

// A task of any type, so that there is one loop over the thread pool and not one for each type.
struct AnyTask {
  const void* task;
  void (*run_task)(const void* task, int64_t begin, int64_t end);

  template <class Task>
  explicit AnyTask(const Task& task_)
      : task(&task_), run_task([](const void* any, int64_t begin, int64_t end) {
          cpu::instruction_set().kernels->run(*static_cast<const Task*>(any), begin, end);
        }) {}
  void operator()(int64_t begin, int64_t end) const { run_task(task, begin, end); }
};

struct Cpu {
  using Context = ffi::ThreadPool;
  static constexpr const char* name = "cpu";
  static constexpr bool sums_rows = false;  // the losses of cross entropy, in the kernel

  static auto bind() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>(); }

  template <class Task>
  static ffi::Error run(ffi::ThreadPool pool, const Task& task) {
    const auto [units, width] = units_and_width(task);
    parallel_for(pool, units, units_per_share(width), AnyTask(task));
    return ffi::Error::Success();
  }
};

}  // namespace

std::vector<CallTarget> cpu_targets() { return targets_of<Cpu>(ElementwiseLosses{}); }

}  // namespace jaxloss
