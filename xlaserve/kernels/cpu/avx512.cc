// Kernels for the instruction set that the file is named after; the build compiles it with the flags for that.

#define XLASERVE_ISA avx512
#define XLASERVE_ISA_NAME "avx512"
#define XLASERVE_ISA_KERNELS kAvx512

#include "isa_kernels.h"
