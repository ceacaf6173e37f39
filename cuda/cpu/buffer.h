// Memory for the numbers of a row, which stays in the cache.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "maths/types.h"

namespace jaxloss::JAXLOSS_ISA {

// (A std::vector's functions would exist once for all instruction sets.)
template <class Real>
struct Buffer {
  Real* numbers;
  JAXLOSS_INLINE explicit Buffer(int64_t count) : numbers(static_cast<Real*>(std::malloc(count * sizeof(Real) + 1))) {}
  JAXLOSS_INLINE ~Buffer() { std::free(numbers); }
  Buffer(const Buffer&) = delete;
};

}  // namespace jaxloss::JAXLOSS_ISA
