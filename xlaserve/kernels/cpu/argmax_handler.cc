// The custom call `xlaserve_argmax`: where the largest number of each row is. It reads numbers once, with all threads, while they are in the
// caches of the cores that have just written them; XLA reads them with one, and more than once.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "pool.h"
#include "xla/ffi/api/ffi.h"

namespace xlaserve {
namespace {

namespace ffi = ::xla::ffi;

ffi::Error Wrong(const std::string& what) { return ffi::Error::InvalidArgument("xlaserve_argmax: " + what); }

constexpr int64_t kPart = 4096;  // numbers that a thread looks at without a pause

// The largest of some numbers; no number where one of them is none.
float Peak(const float* x, int64_t count) {
  using Vector = float __attribute__((vector_size(16), aligned(4)));  // what every x86-64 has: caches are not faster than that
  using Bits = int32_t __attribute__((vector_size(16)));
  constexpr int kVectors = 4, kLanes = 4;
  constexpr float kLeast = -std::numeric_limits<float>::infinity();
  Vector peaks[kVectors];
  Bits wrong[kVectors] = {};
  for (Vector& peak : peaks) peak = Vector{kLeast, kLeast, kLeast, kLeast};
  int64_t i = 0;
  for (; i + kVectors * kLanes <= count; i += kVectors * kLanes) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Vector next = reinterpret_cast<const Vector*>(x + i)[v];
      peaks[v] = next > peaks[v] ? next : peaks[v];
      wrong[v] |= next != next;
    }
  }
  float peak = kLeast;
  bool any_wrong = false;
  for (int v = 0; v < kVectors; ++v) {
    for (int lane = 0; lane < kLanes; ++lane) {
      peak = std::max(peak, peaks[v][lane]);
      any_wrong |= wrong[v][lane] != 0;
    }
  }
  for (; i < count; ++i) {
    peak = std::max(peak, x[i]);
    any_wrong |= x[i] != x[i];
  }
  return any_wrong ? std::numeric_limits<float>::quiet_NaN() : peak;
}

ffi::Error Argmax(ffi::Buffer<ffi::F32> x, ffi::Result<ffi::Buffer<ffi::S32>> found) {
  if (x.dimensions().size() != 2) return Wrong("x must have 2 dimensions");
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1];
  if (width < 1) return Wrong("rows must have numbers");
  if (static_cast<int64_t>(found->element_count()) != rows) return Wrong("there must be one result for each row");
  const int64_t parts = (width + kPart - 1) / kPart;
  std::vector<float> peaks(rows * parts);
  Pool::Get().Run(rows * parts, [&](int64_t part) {
    const int64_t first = part % parts * kPart;
    peaks[part] = Peak(x.typed_data() + part / parts * width + first, std::min(kPart, width - first));
  });
  for (int64_t row = 0; row < rows; ++row) {
    const float* const own = peaks.data() + row * parts;
    if (std::any_of(own, own + parts, [](float peak) { return peak != peak; })) {
      found->typed_data()[row] = static_cast<int32_t>(width - 1);
      continue;
    }
    const int64_t part = std::max_element(own, own + parts) - own;
    const float* const numbers = x.typed_data() + row * width;
    const float* const begin = numbers + part * kPart;
    found->typed_data()[row] = static_cast<int32_t>(std::find(begin, numbers + width, own[part]) - numbers);
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace xlaserve

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(xlaserve_argmax, xlaserve::Argmax,
                              xla::ffi::Ffi::Bind().Arg<xla::ffi::Buffer<xla::ffi::F32>>().Ret<xla::ffi::Buffer<xla::ffi::S32>>());
#pragma GCC visibility pop
