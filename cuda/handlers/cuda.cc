// The handlers on an NVIDIA GPU: a task is launched on XLA's stream.
#include <cuda_runtime_api.h>

#include "gpu/launch.h"
#include "handlers/targets.h"

namespace jaxloss {
namespace {

struct Cuda {
  using Context = cudaStream_t;
  static constexpr const char* name = "CUDA";
  static constexpr bool sums_rows = true;  // the losses of cross entropy, in the kernel

  static auto bind() { return ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>(); }

  static ffi::Error result(cudaError_t status) {
    if (status == cudaSuccess) return ffi::Error::Success();
    return ffi::Error::Internal(std::string("jaxloss: CUDA: ") + cudaGetErrorString(status));
  }

  template <class Loss, class Prediction, class Target>
  static ffi::Error run(cudaStream_t stream, const ElementwiseTask<Loss, Prediction, Target>& task) {
    return result(gpu::launch(stream, task.loss, task.rows));
  }

  template <class Rows>
  static ffi::Error run(cudaStream_t stream, const Rows& rows) {
    return result(gpu::launch(stream, rows));
  }
};

}  // namespace

std::vector<CallTarget> cuda_targets() { return targets_of<Cuda>(ElementwiseLosses{}); }

}  // namespace jaxloss
