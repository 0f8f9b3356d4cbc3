// The threads that kernels compute with: one for each core that the process may use, the calling thread being one of them.
//
// A decode step calls a hundred kernels that take tens of microseconds each. So idle threads watch for the next call for a while before
// they sleep, and parts of the work are claimed one by one: a thread that the system takes away holds up the others by one part only.

#ifndef XLASERVE_KERNELS_CPU_POOL_H_
#define XLASERVE_KERNELS_CPU_POOL_H_

#include <atomic>
#include <cstdint>
#include <mutex>

namespace xlaserve {

class Pool {
 public:
  // The process's pool. Its threads start at the first use and end with the process.
  static Pool& Get();

  // Threads that work at the same time, the caller included.
  int threads() const { return threads_; }

  // Calls body(part) for every part in [0, parts), in any order, and returns when all are done. What was written before is seen by all
  // parts, and what they wrote by the caller. Where another caller is at it, this one computes alone.
  template <typename Body>
  void Run(int64_t parts, const Body& body) {
    RunErased(parts, &body, [](const void* erased, int64_t part) { (*static_cast<const Body*>(erased))(part); });
  }

 private:
  using Call = void (*)(const void* body, int64_t part);

  Pool();
  void RunErased(int64_t parts, const void* body, Call call);
  void Work();
  void Claim();

  int threads_;
  std::mutex caller_;

  // One call at a time. `open_` tells whether the fields below hold one; `inside_` counts the threads that may be reading them.
  const void* body_ = nullptr;
  Call call_ = nullptr;
  int64_t parts_ = 0;
  alignas(64) std::atomic<uint32_t> calls_{0};
  alignas(64) std::atomic<bool> open_{false};
  alignas(64) std::atomic<int> inside_{0};
  alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace xlaserve

#endif  // XLASERVE_KERNELS_CPU_POOL_H_
