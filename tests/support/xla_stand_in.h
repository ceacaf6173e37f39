// What a custom call asks XLA for, from here: errors, and a pool of real threads. With it handlers and the loop over
// threads run without JAX, compiled with a sanitizer.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

#if XLA_FFI_API_MAJOR == 0 && XLA_FFI_API_MINOR < 4  // older jaxlib names it otherwise
#define XLA_FFI_InvokeContext XLA_FFI_ExecutionContext
#endif

struct XLA_FFI_Error {
  XLA_FFI_Error_Code code;
  std::string message;
};

// Threads that run tasks in order. A call waits for its shares, not for tasks that begin later and find none left; so
// that none outlives the library or the buffers, the destructor waits for all.
struct XLA_FFI_InvokeContext {
  explicit XLA_FFI_InvokeContext(int count) {
    for (int i = 0; i < count; i++) threads.emplace_back([this] { serve(); });
  }
  ~XLA_FFI_InvokeContext() {
    {
      const std::lock_guard<std::mutex> held(mutex);
      closed = true;
    }
    changed.notify_all();
    for (std::thread& thread : threads) thread.join();
  }

  void schedule(std::function<void()> task) {
    {
      const std::lock_guard<std::mutex> held(mutex);
      tasks.push_back(std::move(task));
    }
    changed.notify_one();
  }

  std::vector<std::thread> threads;

 private:
  void serve() {
    std::unique_lock<std::mutex> held(mutex);
    for (;;) {
      changed.wait(held, [this] { return closed || !tasks.empty(); });
      if (tasks.empty()) return;
      const std::function<void()> task = std::move(tasks.front());
      tasks.pop_front();
      held.unlock();
      task();
      held.lock();
    }
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> tasks;
  bool closed = false;
};

namespace stand_in {

inline const XLA_FFI_Api& api() {
  static const XLA_FFI_Api table = [] {
    XLA_FFI_Api all = {};
    all.struct_size = XLA_FFI_Api_STRUCT_SIZE;
    all.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
    all.XLA_FFI_Error_Create = [](XLA_FFI_Error_Create_Args* args) {
      return new XLA_FFI_Error{args->errc, args->message};
    };
#if XLA_FFI_API_MAJOR == 0 && XLA_FFI_API_MINOR < 4
    all.XLA_FFI_Error_GetMessage = [](XLA_FFI_Error_GetMessage_Args* args) {
      args->message = args->error->message.c_str();
    };
#else
    all.XLA_FFI_Error_GetDetails = [](XLA_FFI_Error_GetDetails_Args* args) {
      args->message = args->error->message.c_str();
      args->errc = args->error->code;
    };
#endif
    all.XLA_FFI_Error_Destroy = [](XLA_FFI_Error_Destroy_Args* args) { delete args->error; };
    all.XLA_FFI_ThreadPool_Schedule = [](XLA_FFI_ThreadPool_Schedule_Args* args) -> XLA_FFI_Error* {
      args->ctx->schedule([task = args->task, data = args->data] { task(data); });
      return nullptr;
    };
    all.XLA_FFI_ThreadPool_NumThreads = [](XLA_FFI_ThreadPool_NumThreads_Args* args) -> XLA_FFI_Error* {
      *args->num_threads = static_cast<int64_t>(args->ctx->threads.size());
      return nullptr;
    };
    return all;
  }();
  return table;
}

}  // namespace stand_in
