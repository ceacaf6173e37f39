// The CUDA kernels as the handlers see them. Each launch is asynchronous on its stream, allocates nothing, never waits for
// the device, and may be captured in a CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include "tasks.h"

namespace jaxloss::gpu {

template <class Loss, class Prediction, class Target>
cudaError_t launch(cudaStream_t stream, const Loss& loss, const ElementwiseRows<Prediction, Target>& rows);

template <class Logit, class Target>
cudaError_t launch(cudaStream_t stream, const CrossEntropyRows<Logit, Target>& rows);

template <class Logit, class Target>
cudaError_t launch(cudaStream_t stream, const CrossEntropyGradientRows<Logit, Target>& rows);

}  // namespace jaxloss::gpu
