// What `cuda/gpu/core/async.cuh` does, for the emulator.
#pragma once

#include "maths/cross_entropy.h"

namespace jaxloss::gpu {

inline void copy_own(void* to, const void* from) { emulator::current->copies.push_back({to, from}); }
inline void wait_for_own_copies() {
  for (const auto& [to, from] : emulator::current->copies) std::memcpy(to, from, 16);
  emulator::current->copies.clear();
}

struct Barrier {
  int expected, pending, bytes, ended_phases;

  void initialize(int arrivals) { *this = {arrivals, arrivals, 0, 0}; }
  void arrive() {
    pending--;
    end_phase();
  }
  void arrive_and_expect(uint32_t more) {
    bytes += static_cast<int>(more);
    arrive();
  }
  void complete(uint32_t arrived) {
    bytes -= static_cast<int>(arrived);
    end_phase();
  }
  void wait(int phase) const {
    while (ended_phases % 2 == phase % 2) emulator::yield();
  }

 private:
  void end_phase() {
    if (pending != 0 || bytes != 0) return;
    pending = expected;
    ended_phases++;
    emulator::progress++;
  }
};

inline void fence_barrier_initialization() {}
inline void fence_before_copy() {}
inline void copy_to_shared(void* to, const void* from, uint32_t bytes, Barrier& barrier) {
  std::memcpy(to, from, bytes);
  barrier.complete(bytes);
}
inline void copy_to_global(void* to, const void* from, uint32_t bytes) { std::memcpy(to, from, bytes); }
inline void close_copy_group() {}
template <int most_recent>
void wait_for_reads_of_copies() {}
inline void wait_for_copies() {}

inline int cluster_rank() { return emulator::current->block->rank; }
inline int cluster_size() { return static_cast<int>(emulator::cluster->blocks.size()); }
inline int64_t cluster_number() { return blockIdx.x / cluster_size(); }
inline void cluster_arrive() { emulator::current->arrived_at_cluster = emulator::arrive(emulator::cluster->gate); }
inline void cluster_wait() {
  while (emulator::cluster->gate.generation == emulator::current->arrived_at_cluster) emulator::yield();
}

template <class Value>
void send(const Value& value, const Value& to, const Barrier& barrier, int rank) {
  std::memcpy(emulator::in_block(&to, rank), &value, sizeof(value));
  emulator::in_block(&barrier, rank)->complete(sizeof(value));
}
inline void send(uint4 value, const void* to, const Barrier& barrier, int rank) {
  send(value, *static_cast<const uint4*>(to), barrier, rank);
}
inline void send(float2 value, const void* to, const Barrier& barrier, int rank) {
  send(value, *static_cast<const float2*>(to), barrier, rank);
}

}  // namespace jaxloss::gpu
