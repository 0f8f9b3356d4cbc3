// The custom call `xlaserve_zeros`: the arrays that a device keeps and graphs update in place, zeroed, in huge pages where the system has
// some. Attention reads them a few KiB at a time from anywhere, and with pages of 4 KiB nearly each of these needs a look-up of its own.

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "pool.h"
#include "xla/ffi/api/ffi.h"

namespace xlaserve {
namespace {

namespace ffi = ::xla::ffi;

constexpr uintptr_t kHuge = uintptr_t{2} << 20;

void Zero(void* data, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge, last = end / kHuge * kHuge;
  // XLA has just got this memory, so writing is what makes its pages. A system that refuses makes small ones.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  const uintptr_t base = begin / kHuge * kHuge;
  Pool::Get().Run(static_cast<int64_t>((end - base + kHuge - 1) / kHuge), [&](int64_t part) {
    const uintptr_t at = base + static_cast<uintptr_t>(part) * kHuge;
    const uintptr_t from = std::max(at, begin), to = std::min(at + kHuge, end);
    std::memset(reinterpret_cast<void*>(from), 0, to - from);
  });
}

ffi::Error Zeros(ffi::RemainingRets results) {
  for (size_t i = 0; i < results.size(); ++i) {
    auto result = results.get<ffi::AnyBuffer>(i);
    if (!result.has_value()) return result.error();
    ffi::AnyBuffer& array = **result;
    Zero(array.untyped_data(), array.size_bytes());
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace xlaserve

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(xlaserve_zeros, xlaserve::Zeros, xla::ffi::Ffi::Bind().RemainingRets());
#pragma GCC visibility pop
