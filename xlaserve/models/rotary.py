"""Rotary positions (Su et al., 2021): how far each pair of a head's numbers is turned, and the turning."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from xlaserve.models.config import Rope


def inverse_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Rotation speeds in radians per token, float32 `[head_dim / 2]`, scaled as the checkpoint asks.

    The llama3 scaling follows Meta's reference: wavelengths beyond `original / low_freq_factor` are divided by `factor`, those
    below `original / high_freq_factor` are kept, and between the two the speeds are interpolated.
    """
    speeds = 1.0 / (rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)))
    if rope.linear_factor != 1.0:
        speeds = speeds / rope.linear_factor
    if rope.llama3 is not None:
        s = rope.llama3
        wavelength = 2 * math.pi / speeds
        blend = (s.original_max_position / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
        blended = (1 - blend) * speeds / s.factor + blend * speeds
        long, short = wavelength > s.original_max_position / s.low_freq_factor, wavelength < s.original_max_position / s.high_freq_factor
        speeds = np.where(long, speeds / s.factor, np.where(short, speeds, blended))
    return speeds.astype(np.float32)


def rotary(positions: Array, rope: Rope, head_dim: int) -> tuple[Array, Array]:
    """Cosines and sines, float32 `[S, L, 1, head_dim / 2]`, of the rotation at each position (int32 `[S, L]`)."""
    angles = positions.astype(jnp.float32)[..., None, None] * inverse_frequencies(rope, head_dim)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate pairs (i, i + head_dim / 2) of each head, as Hugging Face checkpoints store them. x `[S, L, heads, head_dim]`."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1).astype(x.dtype)
