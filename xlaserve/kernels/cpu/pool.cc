#include "pool.h"

#include <sched.h>

#include <chrono>
#include <thread>

namespace xlaserve {
namespace {

constexpr auto kWatch = std::chrono::microseconds(50);
constexpr int kGlances = 64;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

int Cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

Pool& Pool::Get() {
  static Pool* const pool = new Pool;
  return *pool;
}

Pool::Pool() : threads_(Cores() > 1 ? Cores() : 1) {
  for (int i = 1; i < threads_; ++i) std::thread([this] { Work(); }).detach();
}

void Pool::Claim() {
  for (int64_t part; (part = next_.fetch_add(1, std::memory_order_relaxed)) < parts_;) call_(body_, part);
}

void Pool::RunErased(int64_t parts, const void* body, Call call) {
  std::unique_lock<std::mutex> caller(caller_, std::try_to_lock);
  if (parts < 2 || threads_ == 1 || !caller.owns_lock()) {
    for (int64_t part = 0; part < parts; ++part) call(body, part);
    return;
  }
  body_ = body;
  call_ = call;
  parts_ = parts;
  next_.store(0, std::memory_order_relaxed);
  open_.store(true);
  calls_.fetch_add(1);
  calls_.notify_all();
  Claim();
  open_.store(false);
  for (int i = 0; inside_.load() != 0; ++i) {
    // A thread that is still at its part has been taken away by the system, if it takes as long as this.
    if (i < 4096) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void Pool::Work() {
  uint32_t seen = 0;
  while (true) {
    auto until = std::chrono::steady_clock::now() + kWatch;
    for (int i = 1; calls_.load(std::memory_order_acquire) == seen; ++i) {
      Pause();
      if (i % kGlances == 0 && std::chrono::steady_clock::now() > until) calls_.wait(seen);
    }
    seen = calls_.load(std::memory_order_acquire);
    // The order of these two, and of their opposites in RunErased, is what keeps a late thread from a call that is over.
    inside_.fetch_add(1);
    if (open_.load()) Claim();
    inside_.fetch_sub(1);
  }
}

}  // namespace xlaserve
