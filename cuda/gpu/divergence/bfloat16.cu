#include "gpu/divergence/dispatch.cuh"

namespace jaxloss::gpu {

template cudaError_t launch(cudaStream_t, const DivergenceRows<KullbackLeibler, bfloat16, TeacherLogits<bfloat16>>&);
template cudaError_t launch(cudaStream_t,
                            const DivergenceRows<KullbackLeibler, bfloat16, ClassProbabilities<bfloat16>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<KullbackLeibler, bfloat16, TeacherLogits<float>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<KullbackLeibler, bfloat16, ClassProbabilities<float>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<JensenShannon, bfloat16, TeacherLogits<bfloat16>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<JensenShannon, bfloat16, ClassProbabilities<bfloat16>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<JensenShannon, bfloat16, TeacherLogits<float>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<JensenShannon, bfloat16, ClassProbabilities<float>>&);

}  // namespace jaxloss::gpu
