// The CUDA kernels as the handlers see them: every task launched on a stream.
//
// A launch allocates nothing on the device, waits for nothing, may be captured in a CUDA graph, and works on whichever
// device is current. Gradients may overwrite the predictions or logits that they are of.
#pragma once

#include <cuda_runtime_api.h>

#include "rows.h"

namespace jaxloss::gpu {

template <class Loss, class Prediction, class Target>
cudaError_t launch(cudaStream_t stream, const Loss& loss,
                   const ElementwiseRows<Prediction, Target, Loss::parameter_count>& rows);

template <class Logit, class Target>
cudaError_t launch(cudaStream_t stream, const CrossEntropyRows<Logit, Target>& rows);

template <class Logit, class Target>
cudaError_t launch(cudaStream_t stream, const CrossEntropyGradientRows<Logit, Target>& rows);

template <class Logit, class Target>
cudaError_t launch(cudaStream_t stream, const CrossEntropyOptionRows<Logit, Target>& rows);

template <class Divergence, class Logit, class Teacher>
cudaError_t launch(cudaStream_t stream, const DivergenceRows<Divergence, Logit, Teacher>& rows);

}  // namespace jaxloss::gpu
