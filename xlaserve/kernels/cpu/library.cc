// What Python asks the library itself; `isa.cc` says besides which instruction set it uses.

extern "C" {

// Counts changes of what graphs and Python rely on: names, operands, attributes and meaning of the calls.
int xlaserve_abi() { return 5; }

// What the library was built from, for `xlaserve/kernels/build.py`.
const char* xlaserve_stamp() { return XLASERVE_STAMP; }

}  // extern "C"
