#include "gpu/elementwise/dispatch.cuh"

namespace jaxloss::gpu {

extern const Launchers<ErrorLosses> errors_launchers;
const Launchers<ErrorLosses> errors_launchers;

}  // namespace jaxloss::gpu
