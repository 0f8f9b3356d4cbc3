#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace xlaserve {
namespace {

const Kernels* Choose() {
  const char* const asked = std::getenv("XLASERVE_CPU_ISA");
  const auto wanted = [&](const Kernels& kernels) { return asked == nullptr || *asked == 0 || std::strcmp(asked, kernels.name) == 0; };
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni"), bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  if (bf16 && wanted(kAvx512Bf16)) return &kAvx512Bf16;
  if (vnni && wanted(kAvx512Vnni)) return &kAvx512Vnni;
  if (avx512 && wanted(kAvx512)) return &kAvx512;
  if (avx2 && wanted(kAvx2)) return &kAvx2;
  return nullptr;
}

}  // namespace

const Kernels* Chosen() {
  static const Kernels* const chosen = Choose();
  return chosen;
}

}  // namespace xlaserve

extern "C" const char* xlaserve_instruction_set() {
  const xlaserve::Kernels* const kernels = xlaserve::Chosen();
  return kernels == nullptr ? "" : kernels->name;
}
