"""Weights of 8 bits, and the one product that every layer computes through: exact sums of integers, so that a row gives the same to the
last bit in any company, on any machine and split over any number of devices.

A quantized weight is int8 `[out, in]` and float32 scales `[out]`; the inputs of a product are quantized row by row on the way into it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from xlaserve.platforms.mesh import largest, total

STEPS = 127
"""Values on each side of zero."""

TINY = 2.0**-100
"""What the largest number of a row counts as at least, so that no scale and no inverse of one leaves the normal float32 numbers."""


def project(x: Array, weight: Array, scale: Array | None = None, shards: int = 1) -> Array:
    """`x @ weight.T`, as plain numbers or, with a scale, quantized:

        m = max(max |x|, TINY)                      of the row, float32
        q = round(x * (127 / m))                    int8, ties to even
        y = float(q @ weight.T) * (m * (1 / 127) * scale)

    where the sum is one of int32 and all else is float32, rounded to the type of `x` at the end.

    Args:
        x: `[..., in]`.
        weight: `[out, in]`, of the type of `x`, or int8.
        scale: float32 `[out]` of an int8 weight.
        shards: devices that the inputs are split over; products are added up over them.

    Returns:
        `[..., out]` of the type of `x`.
    """
    if scale is None:
        return total(jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ()))), shards)
    wide = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    most = jnp.maximum(largest(jnp.max(jnp.abs(wide), axis=1, keepdims=True), shards), TINY)
    rows = jnp.round(wide * (STEPS / most)).astype(jnp.int8)
    sums = total(_integer_product(rows, weight), shards)
    y = sums.astype(jnp.float32) * (most * (1 / STEPS) * scale)
    return y.astype(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def _integer_product(rows: Array, weight: Array) -> Array:
    """int8 `[R, in]` and `[out, in]` -> int32 `[R, out]`."""
    count = len(rows)
    if count == 1:
        # For a single row XLA:CPU makes an int32 copy of the whole weight; for two it does not.
        rows = jnp.pad(rows, ((0, 1), (0, 0)))
    return jax.lax.dot_general(rows, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)[:count]


def dequantize(rows: Array, scale: Array, dtype: jnp.dtype) -> Array:
    """int8 rows `[..., in]` with a scale each, float32 `[...]`, as numbers of `dtype`."""
    return (rows.astype(jnp.float32) * scale[..., None]).astype(dtype)


def quantize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round each row to multiples of its largest magnitude / 127, ties to even.

    Args:
        values: `[..., in]` of any float type.

    Returns:
        int8 `[..., in]` and float32 `[...]`, by which a row must be multiplied. A row that is not finite has a scale that is not.
    """
    wide = values.astype(np.float32)
    scale = np.maximum(np.abs(wide).max(axis=-1), np.float32(TINY)) / np.float32(STEPS)
    if not np.isfinite(scale).all():
        return np.zeros(wide.shape, np.int8), scale
    wide /= scale[..., None]
    return np.rint(wide, out=wide).astype(np.int8), scale
