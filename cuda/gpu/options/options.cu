#include "gpu/options/dispatch.cuh"
#include "tasks.h"

namespace jaxloss::gpu {

// Names the launcher of every task in the list, so that the compiler writes them all.
template <class TaskList>
struct OptionLaunchers;
template <class... Rows>
struct OptionLaunchers<List<Rows...>> {
  const void* of_task[sizeof...(Rows)] = {
      reinterpret_cast<const void*>(static_cast<cudaError_t (*)(cudaStream_t, const Rows&)>(&launch))...};
};
extern const OptionLaunchers<CrossEntropyOptionTasks> option_launchers;
const OptionLaunchers<CrossEntropyOptionTasks> option_launchers;

}  // namespace jaxloss::gpu
