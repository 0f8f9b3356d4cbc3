// What Python asks the library itself.

namespace {

// The instruction sets that kernels are compiled for, best first.
const char* BestInstructionSet() {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16")) return "avx512_vnni";
  if (avx512) return "avx512";
  return avx2 ? "avx2" : "";
}

}  // namespace

extern "C" {

// Counts changes of what graphs and Python rely on: names, operands, attributes and meaning of the calls.
int xlaserve_abi() { return 1; }

// What the library was built from, for `xlaserve/kernels/build.py`.
const char* xlaserve_stamp() { return XLASERVE_STAMP; }

// The instruction set that kernels use on this CPU; empty where they cannot run.
const char* xlaserve_instruction_set() { return BestInstructionSet(); }

}  // extern "C"
