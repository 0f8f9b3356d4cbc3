// The custom calls as functions, for the one that makes many of them.

#ifndef XLASERVE_KERNELS_CPU_CALLS_H_
#define XLASERVE_KERNELS_CPU_CALLS_H_

#include <cstdint>

#include "xla/ffi/api/ffi.h"

namespace xlaserve {

// `xlaserve_linear`, as kernels/linear.py describes it. Operands without elements are absent; parameters begin at their places, `at`, in
// theirs.
::xla::ffi::Error Linear(::xla::ffi::AnyBuffer x, ::xla::ffi::AnyBuffer lengths, ::xla::ffi::AnyBuffer weight, ::xla::ffi::AnyBuffer scale,
                         ::xla::ffi::AnyBuffer norm, ::xla::ffi::AnyBuffer bias, ::xla::ffi::AnyBuffer residual,
                         ::xla::ffi::Result<::xla::ffi::AnyBuffer> y, ::xla::ffi::Span<const int64_t> shape,
                         ::xla::ffi::Span<const int64_t> at, float eps, bool unit_offset, int32_t activation);

// `xlaserve_attention`, as kernels/attention.py describes it.
::xla::ffi::Error Attention(::xla::ffi::AnyBuffer qkv, ::xla::ffi::AnyBuffer cos, ::xla::ffi::AnyBuffer sin, ::xla::ffi::AnyBuffer keys,
                            ::xla::ffi::AnyBuffer values, ::xla::ffi::AnyBuffer block_tables, ::xla::ffi::AnyBuffer positions,
                            ::xla::ffi::AnyBuffer lengths, ::xla::ffi::AnyBuffer q_norm, ::xla::ffi::AnyBuffer k_norm,
                            ::xla::ffi::Result<::xla::ffi::AnyBuffer> out, ::xla::ffi::Result<::xla::ffi::AnyBuffer> new_keys,
                            ::xla::ffi::Result<::xla::ffi::AnyBuffer> new_values, int64_t layer, ::xla::ffi::Span<const int64_t> norms_at,
                            int64_t heads, float scale, int64_t window, float softcap, float eps, bool unit_offset);

}  // namespace xlaserve

#endif  // XLASERVE_KERNELS_CPU_CALLS_H_
