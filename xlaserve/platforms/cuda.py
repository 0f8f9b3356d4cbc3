"""NVIDIA GPUs through JAX's CUDA plugin: bfloat16, KV in device memory."""

from __future__ import annotations

from xlaserve.platforms.platform import Platform

CUDA = Platform(
    name="cuda",
    jax_name="cuda",
    dtype="bfloat16",
    block_size=16,
    max_num_seqs=64,
    max_num_batched_tokens=2048,
    attention="tiled",
    branches=True,
    top_k="sort",
    install="Install JAX's CUDA plugin with `pip install 'xlaserve[cuda13]'` (or [cuda12]) and check the driver with `nvidia-smi`.",
)
