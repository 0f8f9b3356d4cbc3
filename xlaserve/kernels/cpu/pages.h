// Huge pages for what XLA has just got from the system.

#ifndef XLASERVE_KERNELS_CPU_PAGES_H_
#define XLASERVE_KERNELS_CPU_PAGES_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

namespace xlaserve {

// Asks for huge pages below a large result. XLA gets the memory of graphs with large arrays anew at every step, and then each page of 4 KiB
// costs about as much as computing what it holds. The advice may concern neighbours too: what they hold stays.
inline void AdviseHugePages(void* data, size_t bytes) {
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  if (bytes < kHuge) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes + kHuge - 1) / kHuge * kHuge;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

}  // namespace xlaserve

#endif  // XLASERVE_KERNELS_CPU_PAGES_H_
