// What the linear kernel is asked for, and where it may put things meanwhile: the same for all instruction sets.

#ifndef XLASERVE_KERNELS_CPU_LINEAR_ARGS_H_
#define XLASERVE_KERNELS_CPU_LINEAR_ARGS_H_

#include <cstdint>

namespace xlaserve {

enum class Activation : int32_t { kNone = 0, kSilu = 1, kGeluTanh = 2, kGelu = 3 };
enum class WeightType : int32_t { kF32 = 0, kBf16 = 1, kS8 = 2 };

// x is [*, inputs], weight [outputs, inputs] or panels of it; y and residual are [*, outputs], or [*, outputs / 2] of a gated layer, where the first half of
// the outputs goes through the activation and multiplies the second. x, norm, bias and residual are bfloat16 or else float32.
struct LinearArgs {
  const void* x;
  bool bf16;
  const int32_t* row_index;  // of each row to compute its place in x and y; null where that is the same
  int64_t rows;
  int64_t inputs;
  int64_t outputs;
  WeightType weight_type;
  const void* weight;
  bool panels;  // whether the weight is [outputs / 32][inputs / g][32][g], of a gated layer with outputs / 64 panels for each half; see panels.h
  const float* scale;    // [outputs] of int8 weights, else null
  const void* norm;      // [inputs] or null: x is normalized by its root mean square, and multiplied by this
  float eps;
  bool unit_offset;      // the norm's weight is stored as its difference from 1
  const void* bias;      // [outputs] or null
  const void* residual;  // null, or added to the result
  Activation activation;
  void* y;
  bool out_bf16;

  // For `2 * rows` pointers, `rows` lines of `padded_inputs` elements of 4 bytes each (64 bytes aligned), `rows` floats and `2 * rows`
  // integers.
  const void** row_scratch;
  void* x_scratch;
  float* scale_scratch;
  int32_t* sum_scratch;

  bool gated() const { return activation != Activation::kNone; }
  int64_t row(int64_t i) const { return row_index == nullptr ? i : row_index[i]; }

  // Elements from a line of prepared x to the next. Lines that are whole pages apart would share places in the first-level cache.
  int64_t padded_inputs() const {
    const int64_t padded = (inputs + 63) / 64 * 64;
    return padded % 1024 == 0 ? padded + 64 : padded;
  }
};

}  // namespace xlaserve

#endif  // XLASERVE_KERNELS_CPU_LINEAR_ARGS_H_
