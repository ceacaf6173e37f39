// Which rows lie in memory so that a step of 16 bytes of logits is whole vectors of everything beside it.
#pragma once

#include "gpu/core/vector.cuh"
#include "rows.h"

namespace jaxloss::gpu {

inline int64_t bytes_past_vector(const void* pointer) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(pointer) % kVectorBytes);
}

// Whether the target's numbers beside a step of logits are whole vectors, given the first logit that begins a step.
inline bool steps_are_aligned(ClassIndices, int64_t) { return true; }
template <class Stored>
bool steps_are_aligned(ClassProbabilities<Stored> target, int64_t first) {
  return bytes_past_vector(target.probability + first) == 0;
}

// Then it is so in every row.
template <class Logit, class Target>
bool aligned_alike(const CrossEntropyRows<Logit, Target>& rows) {
  const int64_t past = bytes_past_vector(rows.logits);
  if (rows.gradient && bytes_past_vector(rows.gradient) != past) return false;
  return steps_are_aligned(rows.target, past == 0 ? 0 : (kVectorBytes - past) / static_cast<int64_t>(sizeof(Logit)));
}

// Of the threads of a row: a few at least share the numbers before and after its vectors, where there may be any.
template <class Rows>
int fewest_lanes(const Rows& rows) {
  using Logit = std::remove_cv_t<std::remove_pointer_t<decltype(rows.logits)>>;
  return bytes_past_vector(rows.logits) != 0 || rows.classes % kPerVector<Logit> != 0 ? 4 : 1;
}

}  // namespace jaxloss::gpu
