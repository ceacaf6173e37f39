#include "gpu/divergence/dispatch.cuh"

namespace jaxloss::gpu {

template cudaError_t launch(cudaStream_t, const DivergenceRows<KullbackLeibler, float, TeacherLogits<float>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<KullbackLeibler, float, ClassProbabilities<float>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<JensenShannon, float, TeacherLogits<float>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<JensenShannon, float, ClassProbabilities<float>>&);

}  // namespace jaxloss::gpu
