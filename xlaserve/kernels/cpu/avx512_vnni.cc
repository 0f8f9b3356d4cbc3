// Kernels for the instruction set that the file is named after; the build compiles it with the flags for that.

#define XLASERVE_VNNI
#define XLASERVE_ISA avx512_vnni
#define XLASERVE_ISA_NAME "avx512_vnni"
#define XLASERVE_ISA_KERNELS kAvx512Vnni

#include "isa_kernels.h"
