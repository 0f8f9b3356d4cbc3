"""Weights of 8 bits, and the one product that every layer computes through: exact sums of integers, so that a row gives the same to the
last bit in any company, on any machine and split over any number of devices.

A quantized weight is int8 `[out, in]` and float32 scales `[out]`. The inputs of a product are quantized row by row on the way into it, to
16 bits in two halves: in 8 bits they would cost ten times the accuracy that the weights cost.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from xlaserve.platforms.mesh import largest, total

WEIGHT_STEPS = 127
"""Values of a weight on each side of zero."""

HALF = 256
INPUT_STEPS = 127 * HALF + 127
"""Values of an input on each side of zero: the most of which both halves, `HALF * high + low`, are int8."""

TINY = 2.0**-100
"""What the largest magnitude of a row counts as at least, so that no scale and no inverse of one leaves the normal float32 numbers."""


def project(x: Array, weight: Array, scale: Array | None = None, shards: int = 1) -> Array:
    """`x @ weight.T`, as plain numbers or, with a scale, of a quantized weight:

        m = max(max |x|, TINY)                                  of the row
        q = round(x * (INPUT_STEPS / m))                        ties to even; q = HALF * high + low, both int8, -128 <= low < 128
        s = HALF * float(high @ weight.T) + float(low @ weight.T)
        y = s * (m * (1 / INPUT_STEPS) * scale)

    The two products are sums of int32, and all else is float32, rounded to the type of `x` at the end.

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
    steps = jnp.round(wide * (INPUT_STEPS / most)).astype(jnp.int32)
    high = (steps + HALF // 2) >> 8
    # As rows of one product: the weight is read once. For a product of a single row XLA:CPU would make an int32 copy of the whole weight.
    halves = jnp.concatenate((high, steps - HALF * high)).astype(jnp.int8)
    sums = total(jax.lax.dot_general(halves, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32), shards)
    upper, lower = jnp.split(sums.astype(jnp.float32), 2)
    y = (HALF * upper + lower) * (most * (1 / INPUT_STEPS) * scale)
    return y.astype(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def dequantize(rows: Array, scale: Array, dtype: DTypeLike) -> Array:
    """int8 rows `[..., in]` with a scale each, float32 `[...]`, as numbers of `dtype`."""
    return (rows.astype(jnp.float32) * scale[..., None]).astype(dtype)


def quantize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round each row to multiples of its largest magnitude / 127, ties to even.

    Args:
        values: `[..., in]` of any float type.

    Returns:
        int8 `[..., in]`, and float32 `[...]` that a row is to be multiplied by. Where a number is not finite, neither is its row's factor,
        and the int8 mean nothing.
    """
    wide = values.astype(np.float32)
    scale = np.maximum(np.abs(wide).max(axis=-1), np.float32(TINY)) / np.float32(WEIGHT_STEPS)
    if not np.isfinite(scale).all():
        return np.zeros(wide.shape, np.int8), scale
    wide /= scale[..., None]
    return np.rint(wide, out=wide).astype(np.int8), scale
