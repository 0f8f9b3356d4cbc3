"""The product of a linear layer as one call of the CPU kernels, with what stands around it in a decoder layer: the norm before it, the
gated activation, bias and residual after it.

A row's result does not depend on the rows beside it, nor on the number of threads, to the last bit.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from xlaserve.kernels.packs import Packed, where
from xlaserve.kernels.panels import matrix_shape

LINEAR = "xlaserve_linear"
"""Name of the custom call."""

ACTIVATIONS = (None, "silu", "gelu_tanh", "gelu")
"""By the numbers that the kernel has for them."""


def linear(
    x: Array,
    weight: Array | Packed,
    scale: Array | Packed | None = None,
    *,
    lengths: Array | None = None,
    norm: Array | Packed | None = None,
    eps: float = 0.0,
    unit_offset: bool = False,
    bias: Array | Packed | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    dtype: Any = None,
) -> Array:
    """`norm(x) @ weight.T + bias`, of a gated layer `activation(first half) * second half` of that, plus the residual. Parameters may lie
    in packs (`xlaserve.kernels.packs`).

    Args:
        x: float32 or bfloat16 `[..., inputs]`.
        weight: `[outputs, inputs]` or panels of it (`xlaserve.kernels.panels`), of the type of `x`; or int8, and x is multiplied as 16-bit
            numbers, as `xlaserve.models.quantization.project` defines it.
        scale: float32 `[outputs]` of int8 weights.
        lengths: int32 `[S]`: x is `[S, L, inputs]`, or `[S, inputs]` with L of 1, and of each row so many places are real. Results of the
            others are 0 and cost nothing.
        norm: `[inputs]`, the weight of an RMS norm that x goes through first, with `eps` and `unit_offset`.
        bias: `[outputs]`.
        activation: "silu", "gelu_tanh" or "gelu"; None for a layer that is not gated.
        residual: shaped as the result.
        dtype: of the result; None for that of `x`.

    Returns: `[..., outputs]`, half of that if gated.
    """
    width = matrix_shape(weight.shape)[0] // (1 if activation is None else 2)

    absent = jnp.zeros((0,), x.dtype)
    parameters = [(absent, 0) if p is None else where(p) for p in (weight, scale, norm, bias)]
    call = jax.ffi.ffi_call(LINEAR, jax.ShapeDtypeStruct((*x.shape[:-1], width), dtype or x.dtype))
    return call(  # type: ignore[no-any-return]
        x,
        jnp.zeros((0,), jnp.int32) if lengths is None else lengths,
        *(array for array, _ in parameters),
        absent if residual is None else residual,
        shape=np.array(weight.shape, np.int64),
        at=np.array([at for _, at in parameters], np.int64),
        eps=np.float32(eps),
        unit_offset=unit_offset,
        activation=np.int32(ACTIVATIONS.index(activation)),
    )
