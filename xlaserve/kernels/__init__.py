"""Kernels in C++ that graphs for CPU may call through XLA's FFI; what builds and loads them. Without them XLA computes it all."""
