// The custom call `xlaserve_attention`: checks what XLA hands over and computes.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "attention_args.h"
#include "calls.h"
#include "isa.h"
#include "pool.h"
#include "xla/ffi/api/ffi.h"

namespace xlaserve {
namespace {

namespace ffi = ::xla::ffi;

std::string Shape(ffi::AnyBuffer::Dimensions dimensions) {
  std::string text = "[";
  for (size_t i = 0; i < dimensions.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(dimensions[i]);
  return text + "]";
}

ffi::Error Wrong(std::string_view name, const std::string& what) {
  return ffi::Error::InvalidArgument("xlaserve_attention: " + std::string(name) + " " + what);
}

ffi::Error CheckBuffer(std::string_view name, const ffi::AnyBuffer& buffer, ffi::DataType type, std::initializer_list<int64_t> shape) {
  const auto dimensions = buffer.dimensions();
  bool equal = dimensions.size() == shape.size();
  for (size_t i = 0; equal && i < shape.size(); ++i) equal = dimensions[i] == shape.begin()[i];
  if (!equal) return Wrong(name, "is " + Shape(dimensions) + ", not " + Shape({shape.begin(), shape.size()}));
  if (buffer.element_type() != type) return Wrong(name, "has another type than it should have");
  return ffi::Error::Success();
}

// A norm may be part of a larger array.
ffi::Error CheckNorm(std::string_view name, const ffi::AnyBuffer& buffer, ffi::DataType type, int64_t at, int64_t numbers) {
  const auto count = static_cast<int64_t>(buffer.element_count());
  if ((numbers == 0 && count > 0) || at < 0 || at + numbers > count) {
    return Wrong(name, "has " + std::to_string(count) + " numbers, not " + std::to_string(numbers) + " from " + std::to_string(at) + " on");
  }
  if (numbers > 0 && buffer.element_type() != type) return Wrong(name, "has another type than it should have");
  return ffi::Error::Success();
}

// What a row's numbers must be, so that nothing out of range is read or written.
ffi::Error CheckRows(const AttentionArgs& a, int64_t blocks) {
  for (int64_t row = 0; row < a.rows; ++row) {
    const int64_t length = a.lengths[row];
    if (length < 0 || length > a.length) return Wrong("lengths", "has " + std::to_string(length) + " for rows of " + std::to_string(a.length));
    if (length == 0) continue;
    if (a.first[row] + length > a.places) return Wrong("lengths", "has more than " + std::to_string(a.places) + " in all");
    const int32_t* const positions = a.positions + a.first[row];
    const int64_t last = positions[length - 1];
    if (positions[0] < 0 || last >= a.width * a.block_size) {
      return Wrong("positions", "has " + std::to_string(last) + " for tables of " + std::to_string(a.width) + " blocks");
    }
    for (int64_t token = 1; token < length; ++token) {
      if (positions[token] != positions[0] + token) return Wrong("positions", "of row " + std::to_string(row) + " do not follow each other");
    }
    const int64_t seen = a.window == 0 || positions[0] < a.window ? 0 : positions[0] - a.window + 1;
    for (int64_t i = seen / a.block_size; i <= last / a.block_size; ++i) {
      const int32_t block = a.block_tables[row * a.width + i];
      if (block < 0 || block >= blocks) {
        return Wrong("block_tables", "has " + std::to_string(block) + " of " + std::to_string(blocks) + " blocks");
      }
    }
  }
  return ffi::Error::Success();
}

}  // namespace

ffi::Error Attention(ffi::AnyBuffer qkv, ffi::AnyBuffer cos, ffi::AnyBuffer sin, ffi::AnyBuffer keys, ffi::AnyBuffer values,
                     ffi::AnyBuffer block_tables, ffi::AnyBuffer positions, ffi::AnyBuffer lengths, ffi::AnyBuffer q_norm,
                     ffi::AnyBuffer k_norm, ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::AnyBuffer> new_keys,
                     ffi::Result<ffi::AnyBuffer> new_values, int64_t layer, ffi::Span<const int64_t> norms_at, int64_t heads,
                     float scale, int64_t window, float softcap, float eps, bool unit_offset) {
  const auto type = qkv.element_type();
  if (type != ffi::F32 && type != ffi::BF16) return Wrong("qkv", "is neither float32 nor bfloat16");
  if (qkv.dimensions().size() != 3) return Wrong("qkv", "is " + Shape(qkv.dimensions()) + ", not [rows, length, numbers]");
  if (keys.dimensions().size() != 5) {
    return Wrong("keys", "is " + Shape(keys.dimensions()) + ", not [layers, blocks, kv_heads, head_dim, block_size]");
  }
  if (block_tables.dimensions().size() != 2) return Wrong("block_tables", "is " + Shape(block_tables.dimensions()) + ", not [rows, blocks]");
  // One row of places for several sequences is shared by them: their tokens follow one another.
  const int64_t lines = qkv.dimensions()[0], length = qkv.dimensions()[1];
  const int64_t rows = lines == 1 ? block_tables.dimensions()[0] : lines, width = block_tables.dimensions()[1];
  const int64_t layers = keys.dimensions()[0], blocks = keys.dimensions()[1], kv_heads = keys.dimensions()[2];
  const int64_t dim = keys.dimensions()[3], size = keys.dimensions()[4];
  if (layer < 0 || layer >= layers) return Wrong("layer", "is " + std::to_string(layer) + " of " + std::to_string(layers));
  if (size < 1 || (size & (size - 1)) != 0) return Wrong("keys", "has blocks of " + std::to_string(size) + ", which is no power of two");
  if (dim < 8 || dim % 8 != 0) return Wrong("keys", "has heads of " + std::to_string(dim) + " numbers, which is no multiple of 8");
  if (kv_heads < 1 || heads < kv_heads || heads % kv_heads != 0) {
    return Wrong("heads", "is " + std::to_string(heads) + " with " + std::to_string(kv_heads) + " key heads");
  }
  if (window < 0) return Wrong("window", "is " + std::to_string(window));
  if (norms_at.size() != 2) return Wrong("norms_at", "does not have two places");
  const int64_t norm = q_norm.element_count() == 0 ? 0 : dim;
  for (const ffi::Error& error : {
           CheckBuffer("qkv", qkv, type, {lines, length, (heads + 2 * kv_heads) * dim}),
           CheckBuffer("cos", cos, ffi::F32, {lines, length, dim / 2}),
           CheckBuffer("sin", sin, ffi::F32, {lines, length, dim / 2}),
           CheckBuffer("keys", keys, type, {layers, blocks, kv_heads, dim, size}),
           CheckBuffer("values", values, type, {layers, blocks, kv_heads, size, dim}),
           CheckBuffer("block_tables", block_tables, ffi::S32, {rows, width}),
           CheckBuffer("positions", positions, ffi::S32, {lines, length}),
           CheckBuffer("lengths", lengths, ffi::S32, {rows}),
           CheckNorm("q_norm", q_norm, type, norms_at[0], norm),
           CheckNorm("k_norm", k_norm, type, norms_at[1], norm),
           CheckBuffer("out", *out, type, {lines, length, heads * dim}),
       }) {
    if (error.failure()) return error;
  }
  if (new_keys->untyped_data() != keys.untyped_data() || new_values->untyped_data() != values.untyped_data()) {
    return Wrong("keys", "and values are to be updated in place, but results are elsewhere");
  }
  std::vector<int64_t> first(rows);
  for (int64_t row = 0, place = 0; row < rows; ++row) {
    first[row] = place;
    place += rows == lines ? length : std::max<int64_t>(0, lengths.typed_data<int32_t>()[row]);
  }
  const size_t width_of = type == ffi::BF16 ? 2 : 4;
  const auto from = [width_of](const ffi::AnyBuffer& buffer, int64_t at) { return static_cast<char*>(buffer.untyped_data()) + at * width_of; };
  const int64_t cached = layer * blocks * kv_heads * dim * size;
  const AttentionArgs args{
      .bf16 = type == ffi::BF16,
      .rows = rows,
      .places = lines * length,
      .length = length,
      .heads = heads,
      .kv_heads = kv_heads,
      .head_dim = dim,
      .block_size = size,
      .width = width,
      .qkv = qkv.untyped_data(),
      .cos = cos.typed_data<float>(),
      .sin = sin.typed_data<float>(),
      .keys = from(keys, cached),
      .values = from(values, cached),
      .block_tables = block_tables.typed_data<int32_t>(),
      .positions = positions.typed_data<int32_t>(),
      .lengths = lengths.typed_data<int32_t>(),
      .first = first.data(),
      .q_norm = norm == 0 ? nullptr : from(q_norm, norms_at[0]),
      .k_norm = norm == 0 ? nullptr : from(k_norm, norms_at[1]),
      .out = out->untyped_data(),
      .scale = scale,
      .window = window,
      .softcap = softcap,
      .eps = eps,
      .unit_offset = unit_offset,
  };
  if (ffi::Error error = CheckRows(args, blocks); error.failure()) return error;
  const Kernels* const kernels = Chosen();
  if (kernels == nullptr) return ffi::Error(ffi::ErrorCode::kUnimplemented, "xlaserve_attention: this processor has neither AVX2 nor AVX-512");
  if (!kernels->attention(args, Pool::Get())) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "xlaserve_attention: out of memory");
  return ffi::Error::Success();
}

}  // namespace xlaserve

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(xlaserve_attention, xlaserve::Attention,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::AnyBuffer>()   // qkv
                                  .Arg<xla::ffi::AnyBuffer>()   // cos
                                  .Arg<xla::ffi::AnyBuffer>()   // sin
                                  .Arg<xla::ffi::AnyBuffer>()   // keys
                                  .Arg<xla::ffi::AnyBuffer>()   // values
                                  .Arg<xla::ffi::AnyBuffer>()   // block_tables
                                  .Arg<xla::ffi::AnyBuffer>()   // positions
                                  .Arg<xla::ffi::AnyBuffer>()   // lengths
                                  .Arg<xla::ffi::AnyBuffer>()   // q_norm
                                  .Arg<xla::ffi::AnyBuffer>()   // k_norm
                                  .Ret<xla::ffi::AnyBuffer>()   // out
                                  .Ret<xla::ffi::AnyBuffer>()   // keys
                                  .Ret<xla::ffi::AnyBuffer>()   // values
                                  .Attr<int64_t>("layer")
                                  .Attr<xla::ffi::Span<const int64_t>>("norms_at")
                                  .Attr<int64_t>("heads")
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("window")
                                  .Attr<float>("softcap")
                                  .Attr<float>("eps")
                                  .Attr<bool>("unit_offset"));
#pragma GCC visibility pop
