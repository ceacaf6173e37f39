#include "gpu/cross_entropy/dispatch.cuh"

namespace jaxloss::gpu {

template cudaError_t launch(cudaStream_t, const CrossEntropyRows<float16, ClassIndices>&);
template cudaError_t launch(cudaStream_t, const CrossEntropyRows<float16, ClassProbabilities<float16>>&);
template cudaError_t launch(cudaStream_t, const CrossEntropyRows<float16, ClassProbabilities<float>>&);

}  // namespace jaxloss::gpu
