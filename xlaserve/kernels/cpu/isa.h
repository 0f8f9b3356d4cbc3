// One table of kernels for each instruction set, of which the best that the machine has is chosen once.

#ifndef XLASERVE_KERNELS_CPU_ISA_H_
#define XLASERVE_KERNELS_CPU_ISA_H_

#include "linear_args.h"

namespace xlaserve {

class Pool;
struct AttentionArgs;

struct Kernels {
  const char* name;
  void (*linear)(const LinearArgs& args, Pool& pool);
  bool (*attention)(const AttentionArgs& args, Pool& pool);  // false where there was no memory for it
};

extern const Kernels kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16;

// The kernels for this machine, or null where it has none of the instruction sets. The environment's XLASERVE_CPU_ISA names a lesser one.
const Kernels* Chosen();

}  // namespace xlaserve

#endif  // XLASERVE_KERNELS_CPU_ISA_H_
