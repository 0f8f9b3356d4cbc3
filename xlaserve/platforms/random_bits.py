"""Random bits that are the same on every platform, since they are made of nothing but 32-bit integer arithmetic."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def mix(x: Array) -> Array:
    """A bijective hash of uint32 with full avalanche (Ellis, "lowbias32", 2018); it maps 0 to 0."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
