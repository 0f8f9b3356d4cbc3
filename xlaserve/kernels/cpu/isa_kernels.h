// All kernels for one instruction set: included by the file that is compiled for it, which defines XLASERVE_ISA, a namespace, and
// XLASERVE_ISA_KERNELS, the name of the table.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#include "attention_args.h"
#include "bf16.h"
#include "isa.h"
#include "pool.h"
#include "scratch.h"

// Everything is in the instruction set's own namespace: the linker must never take a function that was compiled for another.
namespace xlaserve {
namespace XLASERVE_ISA {

#include "simd.h"
#include "activation.h"
#include "vector_math.h"
#include "lanes.h"
#include "panels.h"
//
#include "dot_steps.h"
#include "linear.h"

namespace attention {

#include "attention.h"

}  // namespace attention

void Linear(const LinearArgs& args, Pool& pool) {
  switch (args.weight_type) {
    case WeightType::kF32:
      return Product<F32Dot>(args).Run(pool);
    case WeightType::kBf16:
      return Product<Bf16Dot>(args).Run(pool);
    case WeightType::kS8:
      return Product<S8Dot>(args).Run(pool);
  }
}

}  // namespace XLASERVE_ISA

const Kernels XLASERVE_ISA_KERNELS = {XLASERVE_ISA_NAME, XLASERVE_ISA::Linear, XLASERVE_ISA::attention::Attend};

}  // namespace xlaserve
