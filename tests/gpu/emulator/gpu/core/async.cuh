// What `cuda/gpu/core/async.cuh` does, for the emulator.
#pragma once

#include "maths/cross_entropy.h"

namespace jaxloss::gpu {

inline void copy_own(void* to, const void* from) {
  emulator::current->copies.push_back({emulator::inside_shared(to, 16), from, 16});
}
inline void wait_for_own_copies() {
  for (const emulator::Copy& copy : emulator::current->copies) copy.make();
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
  void wait(int phase) {
    while (ended_phases % 2 == phase % 2) {
      const auto copy = emulator::coming.find(this);
      if (copy == emulator::coming.end()) {
        emulator::yield();
        continue;
      }
      copy->second.make();
      complete(copy->second.bytes);
      emulator::coming.erase(copy);
    }
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
  emulator::coming.insert({&barrier, {emulator::inside_shared(to, bytes), from, bytes}});
}
inline void copy_to_global(void* to, const void* from, uint32_t bytes) {
  emulator::current->groups_to_global.back().push_back({to, from, bytes});
}
inline void close_copy_group() { emulator::current->groups_to_global.emplace_back(); }
template <size_t most_recent>
void wait_for_reads_of_copies() {
  auto& groups = emulator::current->groups_to_global;
  for (; groups.size() > most_recent + 1; groups.erase(groups.begin())) {
    for (const emulator::Copy& copy : groups.front()) copy.make();
  }
}
inline void wait_for_copies() { wait_for_reads_of_copies<0>(); }

inline int cluster_rank() { return emulator::current->block->rank; }
inline int cluster_size() { return static_cast<int>(emulator::cluster->blocks.size()); }
inline int64_t cluster_number() { return blockIdx.x / cluster_size(); }
inline void cluster_arrive() {
  emulator::current->waits_for_cluster = true;
  emulator::current->arrived_at_cluster = emulator::arrive(emulator::cluster->gate);
}
inline void cluster_wait() {
  emulator::current->waits_for_cluster = false;
  emulator::wait(emulator::cluster->gate, emulator::current->arrived_at_cluster);
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
