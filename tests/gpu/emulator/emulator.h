// CUDA on a CPU: blocks of a kernel run here as fibers of one thread of the operating system, one for each CUDA thread,
// which take turns wherever they wait for each other. `tools/emulate_kernels.py` translates the kernels' sources for it
// and puts this header before them.
//
// It is for faults of logic, without a GPU. Warps' exchanges, barriers, clusters and copies have the meaning of the
// programming guide; what the hardware's instructions round differs in the last bits, and nothing is timed. Shared
// memory begins as NaN; a copy is made when it is waited for, not before; and where no thread could go on, or one ends
// that has not waited for its cluster, the run ends with the place of one of them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#undef __device__
#undef __forceinline__
#undef __global__
#undef __host__
#undef __launch_bounds__
#undef __noinline__
#define __device__
#define __forceinline__ inline
#define __global__
#define __host__
#define __launch_bounds__(...)
#define __noinline__
#define __CUDACC__ 1
#define __CUDA_ARCH__ 900

namespace emulator {

struct Index {
  unsigned x, y = 0, z = 0;
};

// Where threads meet. Those that have ended are waited for no more.
struct Gate {
  int expected = 0, arrived = 0, generation = 0;
};

constexpr int kLanes = 32, kSharedBytes = 65536;

struct Warp {
  Gate gate;
  uint64_t value[2][kLanes][2];  // of two exchanges: nobody is further ahead
};

struct Block {
  Index index;
  int rank;
  Gate gate;
  std::vector<Warp> warps;
  unsigned char* shared;  // its variables, and from `kSharedBytes` on what a launch asks for
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;

  void make() const { std::memcpy(to, from, bytes); }
};

struct Thread {
  jmp_buf place;  // where it goes on, once it has begun
  std::unique_ptr<char[]> stack;
  Block* block;
  Index index;
  int arrived_at_cluster = 0;
  bool waits_for_cluster = false, ended = false;
  const Gate* waits_at = nullptr;  // that is closed while it has the generation
  int generation = 0;
  std::vector<Copy> copies;                         // to shared memory, of its own
  std::vector<std::vector<Copy>> groups_to_global;  // of the copy engine; the last group is not closed
};

struct Cluster {
  Gate gate;
  std::vector<Block> blocks;
};

inline Thread* current = nullptr;
inline Cluster* cluster = nullptr;
inline jmp_buf scheduler;
inline Index block_size, grid_size;
inline size_t dynamic_bytes;  // of shared memory, that each block of the launch asked for
inline uint64_t progress = 0;
inline std::function<void()> body;
inline std::multimap<const void*, Copy> coming;  // bulk copies to shared memory, by the barrier that counts their bytes

// Jumps, for swapcontext calls the system each time; not inlined, for a jump keeps only the registers that a call does.
[[gnu::noinline]] inline void yield() {
  if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
}
[[gnu::noinline]] inline void resume(Thread& thread) {
  current = &thread;
  if (_setjmp(scheduler) == 0) _longjmp(thread.place, 1);
}
inline void open(Gate& gate) {
  gate.arrived = 0;
  gate.generation++;
  progress++;
}
inline int arrive(Gate& gate) {
  const int generation = gate.generation;
  if (++gate.arrived == gate.expected) open(gate);
  return generation;
}
inline void wait(const Gate& gate, int generation) {
  current->waits_at = &gate;
  current->generation = generation;
  while (gate.generation == generation) yield();
  current->waits_at = nullptr;
}
inline bool waits(const Thread& thread) {
  return thread.waits_at != nullptr && thread.waits_at->generation == thread.generation;
}
inline void meet(Gate& gate) { wait(gate, arrive(gate)); }
inline void leave(Gate& gate) {
  gate.expected--;
  if (gate.arrived > 0 && gate.arrived == gate.expected) open(gate);
}

inline Warp& warp() { return current->block->warps[current->index.x / kLanes]; }
inline int lane() { return static_cast<int>(current->index.x % kLanes); }

// Every lane's value, as `all[lane]`, until the next exchange.
template <class Value>
auto exchange(Value value) {
  static_assert(sizeof(Value) <= 16);
  Warp& own = warp();
  auto& all = own.value[own.gate.generation % 2];
  std::memcpy(all[lane()], &value, sizeof(value));
  meet(own.gate);
  return [&all](int of) {
    Value other;
    std::memcpy(&other, all[of], sizeof(other));
    return other;
  };
}

// ---- shared memory --------------------------------------------------------------------------------------------------

[[noreturn]] inline void fail(const char* what) {
  std::printf("FAIL emulator: %s; thread %u of block %u\n", what, current->index.x, current->block->index.x);
  std::fflush(stdout);
  std::abort();
}

// Of a variable, known by its tag: in each block of a launch at the same place.
inline std::map<const void*, size_t> places;
inline size_t end_of_places = 0;
inline size_t place_of(const void* tag, size_t bytes) {
  const auto [found, added] = places.try_emplace(tag, end_of_places);
  if (added) end_of_places += (bytes + 127) / 128 * 128;
  if (end_of_places > kSharedBytes) fail("a kernel has too many shared variables");
  return found->second;
}
template <class Variable>
Variable& shared(const void* tag) {
  return *reinterpret_cast<Variable*>(current->block->shared + place_of(tag, sizeof(Variable)));
}
template <class Element>
Element* dynamic_shared() {
  return reinterpret_cast<Element*>(current->block->shared + kSharedBytes);
}
// So many bytes of this block's shared memory, where they are that.
inline void* inside_shared(void* to, size_t bytes) {
  const ptrdiff_t begin = static_cast<unsigned char*>(to) - current->block->shared;
  if (begin < 0 || begin + bytes > kSharedBytes + dynamic_bytes) fail("a copy leaves the shared memory of its block");
  return to;
}
// What another block of the cluster has at that address of this one.
template <class Variable>
Variable* in_block(const Variable* here, int rank) {
  const ptrdiff_t place = reinterpret_cast<const unsigned char*>(here) - current->block->shared;
  return reinterpret_cast<Variable*>(cluster->blocks[rank].shared + place);
}

// ---- launches -------------------------------------------------------------------------------------------------------

struct Configuration {
  dim3 grid;
  unsigned threads;
  size_t dynamic_bytes;
  unsigned cluster;
};
inline Configuration configuration(dim3 grid, dim3 threads, size_t dynamic_bytes = 0, cudaStream_t = nullptr) {
  return {grid, threads.x, dynamic_bytes, 1};
}

// A fiber runs the thread of its number of every block.
inline void run_threads() {
  for (;;) {
    yield();
    body();
    if (current->waits_for_cluster) fail("a thread has arrived at its cluster's barrier and does not wait");
    current->ended = true;
    progress++;
    leave(warp().gate);
    leave(current->block->gate);
    leave(cluster->gate);
  }
}
inline std::unique_ptr<Thread> fiber() {
  constexpr size_t stack_bytes = 96 << 10;
  auto thread = std::make_unique<Thread>();
  thread->stack = std::make_unique<char[]>(stack_bytes);
  ucontext_t begin;
  getcontext(&begin);
  begin.uc_stack.ss_sp = thread->stack.get();
  begin.uc_stack.ss_size = stack_bytes;
  begin.uc_link = nullptr;
  makecontext(&begin, run_threads, 0);
  current = thread.get();
  if (_setjmp(scheduler) == 0) setcontext(&begin);
  return thread;
}

// Clusters one after the other; their threads in turn.
inline void launch(const Configuration& with, std::function<void()> kernel) {
  static std::vector<std::unique_ptr<Thread>> threads;
  static std::vector<std::unique_ptr<unsigned char[]>> memory;
  body = std::move(kernel);
  places.clear();
  end_of_places = 0;
  block_size = {with.threads};
  grid_size = {with.grid.x, with.grid.y, with.grid.z};
  dynamic_bytes = with.dynamic_bytes;
  const unsigned warps = (with.threads + kLanes - 1) / kLanes, all = with.cluster * with.threads;
  const unsigned grid_blocks = with.grid.x * with.grid.y * with.grid.z;
  while (threads.size() < all) threads.push_back(fiber());
  const size_t bytes = kSharedBytes + with.dynamic_bytes + 256;
  memory.clear();
  for (unsigned i = 0; i < with.cluster; i++) memory.push_back(std::make_unique<unsigned char[]>(bytes));
  for (unsigned first = 0; first < grid_blocks; first += with.cluster) {
    coming.clear();
    Cluster blocks;
    cluster = &blocks;
    blocks.gate.expected = static_cast<int>(all);
    blocks.blocks.resize(with.cluster);
    for (unsigned rank = 0; rank < with.cluster; rank++) {
      std::memset(memory[rank].get(), 0xff, bytes);
      Block& block = blocks.blocks[rank];
      const unsigned of_grid = first + rank;
      block.index = {of_grid % with.grid.x, of_grid / with.grid.x % with.grid.y, of_grid / with.grid.x / with.grid.y};
      block.rank = static_cast<int>(rank);
      block.gate.expected = static_cast<int>(with.threads);
      block.warps.resize(warps);
      const auto address = reinterpret_cast<uintptr_t>(memory[rank].get());
      block.shared = reinterpret_cast<unsigned char*>((address + 127) / 128 * 128);
      for (unsigned t = 0; t < with.threads; t++) {
        block.warps[t / kLanes].gate.expected++;
        Thread& thread = *threads[rank * with.threads + t];
        thread.block = &block;
        thread.index = {t};
        thread.ended = thread.waits_for_cluster = false;
        thread.copies.clear();
        thread.groups_to_global.assign(1, {});
      }
    }
    for (unsigned running = all; running > 0;) {
      const uint64_t before = progress;
      running = 0;
      for (unsigned t = 0; t < all; t++) {
        if (threads[t]->ended) continue;
        running++;
        if (!waits(*threads[t])) resume(*threads[t]);
      }
      if (running > 0 && progress == before) {
        for (unsigned t = 0; current->ended; t++) current = threads[t].get();
        fail("no thread can go on");
      }
    }
  }
  cluster = nullptr;
  current = nullptr;
}

template <class... Parameters, class... Arguments>
cudaError_t launch_ex(const cudaLaunchConfig_t* with, void (*kernel)(Parameters...), Arguments... arguments) {
  Configuration own = configuration(with->gridDim, with->blockDim, with->dynamicSmemBytes);
  for (unsigned i = 0; i < with->numAttrs; i++) {
    if (with->attrs[i].id == cudaLaunchAttributeClusterDimension) own.cluster = with->attrs[i].val.clusterDim.x;
  }
  launch(own, [=] { kernel(arguments...); });
  return cudaSuccess;
}

}  // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::current->block->index)
inline const emulator::Index &blockDim = emulator::block_size, &gridDim = emulator::grid_size;

inline void __syncthreads() { emulator::meet(emulator::current->block->gate); }
inline void __syncwarp(unsigned = ~0u) { emulator::meet(emulator::warp().gate); }
template <class Value>
Value __shfl_xor_sync(unsigned, Value value, int mask) {
  return emulator::exchange(value)(emulator::lane() ^ mask);
}
inline unsigned __ballot_sync(unsigned, bool yes) {
  const auto of = emulator::exchange(yes);
  unsigned bits = 0;
  for (int i = 0; i < emulator::kLanes; i++) bits |= of(i) ? 1u << i : 0u;
  return bits;
}
inline bool __any_sync(unsigned mask, bool yes) { return __ballot_sync(mask, yes) != 0; }

template <class Element>
cudaError_t cudaMalloc(Element** pointer, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(pointer), bytes);
}

template <class Value>
Value __ldcs(const Value* from) {
  return *from;
}
template <class Value>
Value __ldg(const Value* from) {
  return *from;
}
template <class Value>
void __stcs(Value* to, Value value) {
  *to = value;
}

template <class To, class From>
To same_bits(From from) {
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
inline int __float_as_int(float x) { return same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return same_bits<long long>(x); }
inline double __hiloint2double(int high, int low) {
  return same_bits<double>(static_cast<uint64_t>(static_cast<unsigned>(high)) << 32 | static_cast<unsigned>(low));
}
inline int __double2loint(double x) { return static_cast<int>(same_bits<uint64_t>(x)); }
inline int __double2hiint(double x) { return static_cast<int>(same_bits<uint64_t>(x) >> 32); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rounded_product(float a, float b) { return a * b; }
inline float rounded_sum(float a, float b) { return a + b; }
#undef __fmul_rn
#undef __fadd_rn
#define __fmul_rn rounded_product
#define __fadd_rn rounded_sum
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
using std::max;
using std::min;
