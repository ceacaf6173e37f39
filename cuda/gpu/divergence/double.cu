#include "gpu/divergence/dispatch.cuh"

namespace jaxloss::gpu {

template cudaError_t launch(cudaStream_t, const DivergenceRows<KullbackLeibler, double, TeacherLogits<double>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<KullbackLeibler, double, ClassProbabilities<double>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<JensenShannon, double, TeacherLogits<double>>&);
template cudaError_t launch(cudaStream_t, const DivergenceRows<JensenShannon, double, ClassProbabilities<double>>&);

}  // namespace jaxloss::gpu
