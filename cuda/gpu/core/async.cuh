// What the chip does beside the threads: copies between global and shared memory; from Hopper on bulk copies too,
// barriers in shared memory that count bytes, and messages between the blocks of a cluster. Each function is one
// instruction, by its name in the PTX manual.
#pragma once

#include <cstdint>

#include "maths/cross_entropy.h"

namespace jaxloss::gpu {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory, for the thread that asks for them; and until all that it asked for are there.
__device__ __forceinline__ void copy_own(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)),
               "l"(__cvta_generic_to_global(from))
               : "memory");
}
__device__ __forceinline__ void wait_for_own_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// A phase of a barrier ends when `arrivals` threads have arrived and all bytes expected of it have come.
struct Barrier {
  uint64_t state;

  __device__ __forceinline__ void initialize(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals) : "memory");
  }
  __device__ __forceinline__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  __device__ __forceinline__ void arrive_and_expect(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                 : "memory");
  }

  // Until phase number `phase` has ended; the phase before it has. What came for it, from another block too, lies in
  // this block's shared memory: no wider order is asked for, which would drop what the caches hold of the logits.
  __device__ __forceinline__ void wait(int phase) {
    while (!ended(phase)) {
    }
  }

 private:
  __device__ __forceinline__ bool ended(int phase) {
    uint32_t yes;
    asm volatile(
        "{\n"
        ".reg .pred yes;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 yes, [%1], %2;\n"
        "selp.u32 %0, 1, 0, yes;\n"
        "}"
        : "=r"(yes)
        : "r"(shared_address(this)), "r"(phase & 1)
        : "memory");
    return yes;
  }
};

// After barriers are initialised: seen by the copy engine, and by the cluster after `cluster_wait`.
__device__ __forceinline__ void fence_barrier_initialization() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Before the copy engine reads, or overwrites, shared memory that threads wrote: in each of them, ahead of the barrier
// between.
__device__ __forceinline__ void fence_before_copy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Addresses and size are multiples of 16 bytes; the bytes are the barrier's to expect.
__device__ __forceinline__ void copy_to_shared(void* to, const void* from, uint32_t bytes, Barrier& barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(&barrier))
               : "memory");
}
__device__ __forceinline__ void copy_to_global(void* to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(to)),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}

// A thread's copies to global memory since the last call are a group. All groups but the `most_recent` have left shared
// memory, or (`wait_for_copies`) arrived.
__device__ __forceinline__ void close_copy_group() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int most_recent>
__device__ __forceinline__ void wait_for_reads_of_copies() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(most_recent) : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

__device__ __forceinline__ int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
__device__ __forceinline__ int cluster_size() {
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return static_cast<int>(size);
}
// Which cluster of the grid this one is.
__device__ __forceinline__ int64_t cluster_number() {
  uint32_t number;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(number));
  return number;
}
// Others see, once they have waited, barriers that were initialised before `fence_barrier_initialization`, and nothing
// else for sure: to wait until all that a thread has written can be seen would take as long as a load.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// Where another block of the cluster has what this one has at `pointer`.
__device__ __forceinline__ uint32_t address_in_block(const void* pointer, int rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(pointer)), "r"(rank));
  return address;
}

// Writes `value` to what is at `to` in another block of the cluster, and tells the barrier there.
__device__ __forceinline__ void send(float2 value, const void* to, const Barrier& barrier, int rank) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
                   address_in_block(to, rank)),
               "f"(value.x), "f"(value.y), "r"(address_in_block(&barrier, rank))
               : "memory");
}
__device__ __forceinline__ void send(SoftmaxSums<float> value, const SoftmaxSums<float>& to, const Barrier& barrier,
                                     int rank) {
  send(make_float2(value.max, value.sum), &to, barrier, rank);
}
__device__ __forceinline__ void send(float value, const float& to, const Barrier& barrier, int rank) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(address_in_block(&to, rank)),
      "f"(value), "r"(address_in_block(&barrier, rank))
      : "memory");
}

__device__ __forceinline__ void send(uint4 value, const void* to, const Barrier& barrier, int rank) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   address_in_block(to, rank)),
               "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(address_in_block(&barrier, rank))
               : "memory");
}
#endif

}  // namespace jaxloss::gpu
