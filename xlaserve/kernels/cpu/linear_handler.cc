// xlaserve_linear as a custom call of XLA: checks what it is given, and hands it to the kernel of this machine's instruction set.

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "calls.h"
#include "isa.h"
#include "pages.h"
#include "pool.h"
#include "xla/ffi/api/ffi.h"

namespace xlaserve {
namespace {

namespace ffi = ::xla::ffi;

ffi::Error Wrong(const std::string& what) { return ffi::Error::InvalidArgument("xlaserve_linear: " + what); }

// Memory of a calling thread, kept from call to call and aligned for vectors.
class Scratch {
 public:
  char* Get(size_t bytes) {
    if (bytes > size_) {
      size_ = (bytes + bytes / 2 + 63) / 64 * 64;
      memory_.reset(static_cast<char*>(std::aligned_alloc(64, size_)));
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory_;
  size_t size_ = 0;
};

size_t Aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Whether an operand has so many numbers from a place on.
bool Holds(const ffi::AnyBuffer& buffer, int64_t at, int64_t numbers) {
  return at >= 0 && at + numbers <= static_cast<int64_t>(buffer.element_count());
}

// An operand's numbers from a place on; null where it is absent.
const void* From(const ffi::AnyBuffer& buffer, int64_t at) {
  if (buffer.element_count() == 0) return nullptr;
  return static_cast<const char*>(buffer.untyped_data()) + at * (buffer.size_bytes() / buffer.element_count());
}

}  // namespace

ffi::Error Linear(ffi::AnyBuffer x, ffi::AnyBuffer lengths, ffi::AnyBuffer weight, ffi::AnyBuffer scale, ffi::AnyBuffer norm,
                  ffi::AnyBuffer bias, ffi::AnyBuffer residual, ffi::Result<ffi::AnyBuffer> y, ffi::Span<const int64_t> w_dims,
                  ffi::Span<const int64_t> at, float eps, bool unit_offset, int32_t activation) {
  const Kernels* const kernels = Chosen();
  if (kernels == nullptr) return ffi::Error(ffi::ErrorCode::kUnimplemented, "xlaserve_linear: this CPU has no instruction set that it knows");
  const auto x_dims = x.dimensions();
  if (at.size() != 4) return Wrong("at must have four places");
  if (x_dims.size() < 2 || (w_dims.size() != 2 && w_dims.size() != 4)) return Wrong("x must have 2 dimensions or more, and weight 2 or 4");
  LinearArgs args{};
  args.inputs = x_dims.back();
  args.panels = w_dims.size() == 4;
  args.outputs = args.panels ? w_dims[0] * w_dims[2] : w_dims[0];
  if ((args.panels ? w_dims[1] * w_dims[3] : w_dims[1]) != args.inputs) return Wrong("weight must have as many columns as x");
  args.bf16 = x.element_type() == ffi::BF16;
  if (!args.bf16 && x.element_type() != ffi::F32) return Wrong("x must be float32 or bfloat16");
  if (activation < 0 || activation > static_cast<int32_t>(Activation::kGelu)) return Wrong("there is no such activation");
  args.activation = static_cast<Activation>(activation);
  if (args.gated() && args.outputs % 2 != 0) return Wrong("the weight of a gated layer must have an even number of rows");
  const int64_t outputs = args.gated() ? args.outputs / 2 : args.outputs;
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < x_dims.size(); ++i) rows *= x_dims[i];
  if (static_cast<int64_t>(y->element_count()) != rows * outputs) return Wrong("y must have a row for each of x");
  if (y->element_type() != ffi::F32 && y->element_type() != ffi::BF16) return Wrong("y must be float32 or bfloat16");
  if (lengths.element_count() > 0 && (lengths.element_type() != ffi::S32 || static_cast<int64_t>(lengths.element_count()) != x_dims[0])) {
    return Wrong("lengths must be int32, one for each sequence of x");
  }
  switch (weight.element_type()) {
    case ffi::F32:
      args.weight_type = WeightType::kF32;
      break;
    case ffi::BF16:
      args.weight_type = WeightType::kBf16;
      break;
    case ffi::S8:
      args.weight_type = WeightType::kS8;
      break;
    default:
      return Wrong("weight must be float32, bfloat16 or int8");
  }
  const int64_t in_word = args.weight_type == WeightType::kF32 ? 1 : args.weight_type == WeightType::kBf16 ? 2 : 4;
  if (args.panels && (w_dims[2] != 32 || w_dims[3] != in_word)) return Wrong("panels must be of 32 outputs, and their words of 4 bytes");
  if (args.panels && args.gated() && args.outputs % 64 != 0) return Wrong("each half of a gated layer must have whole panels");
  if (args.weight_type != WeightType::kS8 && weight.element_type() != x.element_type()) return Wrong("weight must have x's type, or be int8");
  if (!Holds(weight, at[0], args.outputs * args.inputs)) return Wrong("weight must have as many numbers as its shape says");
  const bool scaled = scale.element_type() == ffi::F32 && Holds(scale, at[1], args.outputs);
  if (args.weight_type == WeightType::kS8 && !scaled) return Wrong("int8 weights need a float32 scale for each output");
  for (const ffi::AnyBuffer& around : {norm, bias, residual}) {
    if (around.element_count() > 0 && around.element_type() != x.element_type()) return Wrong("norm, bias and residual must have x's type");
  }
  if (norm.element_count() > 0 && !Holds(norm, at[2], args.inputs)) return Wrong("norm must be as long as x's rows");
  if (bias.element_count() > 0 && !Holds(bias, at[3], args.outputs)) return Wrong("bias must be one for each output");
  if (residual.element_count() > 0 && residual.element_count() != y->element_count()) return Wrong("residual must be shaped as y");

  args.x = x.untyped_data();
  args.weight = From(weight, at[0]);
  args.scale = static_cast<const float*>(From(scale, at[1]));
  args.norm = From(norm, at[2]);
  args.eps = eps;
  args.unit_offset = unit_offset;
  args.bias = From(bias, at[3]);
  args.residual = From(residual, 0);
  args.y = y->untyped_data();
  args.out_bf16 = y->element_type() == ffi::BF16;
  args.rows = rows;
  AdviseHugePages(args.y, y->size_bytes());

  static thread_local Scratch scratch;
  const size_t index_bytes = Aligned(rows * sizeof(int32_t)), pointer_bytes = Aligned(2 * rows * sizeof(void*));
  const size_t scale_bytes = Aligned(rows * sizeof(float)), sum_bytes = Aligned(2 * rows * sizeof(int32_t));
  char* const memory = scratch.Get(index_bytes + pointer_bytes + scale_bytes + sum_bytes + rows * args.padded_inputs() * sizeof(float));
  if (const auto* live = static_cast<const int32_t*>(From(lengths, 0))) {
    // Of every sequence only the tokens that are there are computed; the places of the others become zeros.
    const int64_t sequences = lengths.element_count(), length = rows / sequences;
    const size_t row_bytes = outputs * (args.out_bf16 ? 2 : 4);
    auto* const index = reinterpret_cast<int32_t*>(memory);
    int64_t count = 0;
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t real = std::clamp<int64_t>(live[s], 0, length);
      for (int64_t i = 0; i < real; ++i) index[count++] = static_cast<int32_t>(s * length + i);
      std::fill_n(static_cast<char*>(args.y) + (s * length + real) * row_bytes, (length - real) * row_bytes, 0);
    }
    args.row_index = index;
    args.rows = count;
  }
  args.row_scratch = reinterpret_cast<const void**>(memory + index_bytes);
  args.scale_scratch = reinterpret_cast<float*>(memory + index_bytes + pointer_bytes);
  args.sum_scratch = reinterpret_cast<int32_t*>(memory + index_bytes + pointer_bytes + scale_bytes);
  args.x_scratch = memory + index_bytes + pointer_bytes + scale_bytes + sum_bytes;
  if (args.rows > 0) kernels->linear(args, Pool::Get());
  return ffi::Error::Success();
}

}  // namespace xlaserve

XLA_FFI_DEFINE_HANDLER_SYMBOL(xlaserve_linear, xlaserve::Linear,
                              ::xla::ffi::Ffi::Bind()
                                  .Arg<::xla::ffi::AnyBuffer>()
                                  .Arg<::xla::ffi::AnyBuffer>()
                                  .Arg<::xla::ffi::AnyBuffer>()
                                  .Arg<::xla::ffi::AnyBuffer>()
                                  .Arg<::xla::ffi::AnyBuffer>()
                                  .Arg<::xla::ffi::AnyBuffer>()
                                  .Arg<::xla::ffi::AnyBuffer>()
                                  .Ret<::xla::ffi::AnyBuffer>()
                                  .Attr<::xla::ffi::Span<const int64_t>>("shape")
                                  .Attr<::xla::ffi::Span<const int64_t>>("at")
                                  .Attr<float>("eps")
                                  .Attr<bool>("unit_offset")
                                  .Attr<int32_t>("activation"));
