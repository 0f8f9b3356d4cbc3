// A bfloat16: the upper half of a float32's bits.

#ifndef XLASERVE_KERNELS_CPU_BF16_H_
#define XLASERVE_KERNELS_CPU_BF16_H_

#include <cstdint>

namespace xlaserve {

struct Bf16 {
  uint16_t bits;
};

}  // namespace xlaserve

#endif  // XLASERVE_KERNELS_CPU_BF16_H_
