// Kernels for the instruction set that the file is named after; the build compiles it with the flags for that.

#define XLASERVE_ISA avx2
#define XLASERVE_ISA_NAME "avx2"
#define XLASERVE_ISA_KERNELS kAvx2

#include "isa_kernels.h"
