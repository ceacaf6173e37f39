// A loop over XLA's thread pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace jaxloss {

// Calls `body(begin, end)` over [0, count), in shares of `grain`, on the pool's threads and on this one.
//
// The handler itself runs on a thread of the pool, so it must not wait for a task that has not started: the pool might
// have no thread left to start it. Every thread takes shares until none is left, this one too, and it then waits only
// for shares that are being worked on. A task that starts later finds no share and touches nothing but the counters.
template <class Body>
__attribute__((noinline)) void parallel_for(xla::ffi::ThreadPool& pool, int64_t count, int64_t grain,
                                            const Body& body) {
  const int64_t shares = (count + grain - 1) / grain;
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), shares) - 1;
  if (helpers <= 0) {
    if (count > 0) body(0, count);
    return;
  }
  struct Progress {
    std::atomic<int64_t> taken{0}, done{0};
  };
  const auto progress = std::make_shared<Progress>();
  const auto work = [progress, shares, count, grain, body = &body] {
    for (int64_t share = progress->taken++; share < shares; share = progress->taken++) {
      (*body)(share* grain, std::min(count, (share + 1) * grain));
      progress->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t i = 0; i < helpers; i++) pool.Schedule([work] { work(); });
  work();
  while (progress->done.load(std::memory_order_acquire) < shares) std::this_thread::yield();
}

}  // namespace jaxloss
