"""NVIDIA GPUs through JAX's CUDA plugin: bfloat16, KV in device memory."""

from __future__ import annotations

import os

from xlaserve.platforms.platform import DEFAULT_UTILIZATION, Platform

_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_UNPLANNED = 1 / 64
"""Share of the client's memory that is left free, for what lies between arrays."""


class CUDAPlatform(Platform):
    """CUDA through JAX's plugin, whose client takes a fixed share of the card when it starts and reports that as the device's memory."""

    __slots__ = ()

    def reserve(self, utilization: float | None, devices: int) -> None:
        """Have the client take the share that is wanted instead of its own three quarters, unless the user has told it another."""
        os.environ.setdefault(_FRACTION, f"{utilization or DEFAULT_UTILIZATION:.4f}")

    def planned_memory(self, utilization: float | None) -> int | None:
        """What the client has taken, less a little: the share is in it already."""
        memory = self.memory()
        return None if memory is None else int(memory * (1 - _UNPLANNED))


CUDA = CUDAPlatform(
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
