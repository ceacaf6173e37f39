#include "gpu/elementwise/dispatch.cuh"

namespace jaxloss::gpu {

extern const Launchers<BinaryLosses> binary_launchers;
const Launchers<BinaryLosses> binary_launchers;

}  // namespace jaxloss::gpu
