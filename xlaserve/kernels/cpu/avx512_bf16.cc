// Kernels for the instruction set that the file is named after; the build compiles it with the flags for that.

#define XLASERVE_VNNI
#define XLASERVE_BF16
#define XLASERVE_ISA avx512_bf16
#define XLASERVE_ISA_NAME "avx512_bf16"
#define XLASERVE_ISA_KERNELS kAvx512Bf16

#include "isa_kernels.h"
