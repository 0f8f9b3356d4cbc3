"""The most likely token of each row as one call of the CPU kernels: XLA goes through the logits on one core, and more than once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

ARGMAX = "xlaserve_argmax"
"""Name of the custom call."""


def largest_index(x: Array) -> Array:
    """The index of the largest value of each row, the first of equals, as `xlaserve.sampling.sampler.argmax` gives it; the last index where
    a value is no number.

    Args:
        x: float32 `[B, V]`, V at least 1.

    Returns: int32 `[B]`.
    """
    return jax.ffi.ffi_call(ARGMAX, jax.ShapeDtypeStruct(x.shape[:1], jnp.int32))(x)  # type: ignore[no-any-return]
