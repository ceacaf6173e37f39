#include "gpu/cross_entropy/dispatch.cuh"

namespace jaxloss::gpu {

template cudaError_t launch(cudaStream_t, const CrossEntropyRows<bfloat16, ClassIndices>&);
template cudaError_t launch(cudaStream_t, const CrossEntropyRows<bfloat16, ClassProbabilities<bfloat16>>&);
template cudaError_t launch(cudaStream_t, const CrossEntropyRows<bfloat16, ClassProbabilities<float>>&);

}  // namespace jaxloss::gpu
