#include "gpu/divergence/dispatch.cuh"

namespace jaxloss::gpu {

template cudaError_t launch(cudaStream_t, const DivergenceRows<KullbackLeibler, float16, TeacherLogits<float16>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<KullbackLeibler, float16, ClassProbabilities<float16>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<KullbackLeibler, float16, TeacherLogits<float>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<KullbackLeibler, float16, ClassProbabilities<float>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<JensenShannon, float16, TeacherLogits<float16>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<JensenShannon, float16, ClassProbabilities<float16>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<JensenShannon, float16, TeacherLogits<float>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<JensenShannon, float16, ClassProbabilities<float>>&);

}  // namespace jaxloss::gpu
