#include "gpu/cross_entropy/dispatch.cuh"

namespace jaxloss::gpu {

template cudaError_t launch(cudaStream_t, const CrossEntropyRows<double, ClassIndices>&);
template cudaError_t launch(cudaStream_t, const CrossEntropyRows<double, ClassProbabilities<double>>&);

}  // namespace jaxloss::gpu
