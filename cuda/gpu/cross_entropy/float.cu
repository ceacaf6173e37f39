#include "gpu/cross_entropy/dispatch.cuh"

namespace jaxloss::gpu {

template cudaError_t launch(cudaStream_t, const CrossEntropyRows<float, ClassIndices>&);
template cudaError_t launch(cudaStream_t, const CrossEntropyRows<float, ClassProbabilities<float>>&);

}  // namespace jaxloss::gpu
