"""Arrays of zeros that a device keeps, as one call of the CPU kernels: they lie in huge pages where the system has some.

XLA's own zeros are in pages of 4 KiB, where attention, which reads a few KiB here and there, waits for a look-up at nearly each read.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax import Array

ZEROS = "xlaserve_zeros"
"""Name of the custom call."""


def zeros(arrays: Sequence[jax.ShapeDtypeStruct]) -> tuple[Array, ...]:
    """Arrays of these shapes and dtypes, all in one call: several that are alike would be one to XLA, and then copies of it."""
    return tuple(jax.ffi.ffi_call(ZEROS, tuple(arrays))())
