"""The two operations that a decoder spends its time in, as an interface: linear layers with what stands around them, and attention.

Families are written against it. `XlaOperations` is what XLA makes of plain arithmetic, on every platform; a platform with kernels of its
own has another implementation, which gives the same within rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from xlaserve.kernels.packs import Packed, unpacked
from xlaserve.kernels.panels import as_matrix
from xlaserve.models.config import Activation, ModelConfig
from xlaserve.models.quantization import project
from xlaserve.models.rotary import rotary, rotate


class Attend(Protocol):
    """Attention of one layer over what is cached and what is new; the caller of the model decides where keys and values live."""

    def __call__(self, layer: int, q: Array, k: Array, v: Array, *, scale: float, window: int | None, softcap: float | None) -> Array:
        """Args: q `[S, L, num_heads, head_dim]`; k, v `[S, L, num_kv_heads, head_dim]`. Returns what q attends to, shaped as q."""
        ...


class Norm(NamedTuple):
    """An RMS norm.

    Args:
        weight: `[width]`; as parameters of layers may, it may lie in a pack (`xlaserve.kernels.packs`).
        eps: what the mean of squares is raised by.
        unit_offset: whether the weight is stored as its difference from 1.
    """

    weight: Array | Packed
    eps: float
    unit_offset: bool


class Weights(NamedTuple):
    """Parameters of a linear layer.

    Args:
        weight: `[outputs, inputs]`, or panels of that (`xlaserve.kernels.panels`).
        scale: `[outputs]` where the weight is quantized.
        bias: `[outputs]`, or None.
    """

    weight: Array | Packed
    scale: Array | Packed | None = None
    bias: Array | Packed | None = None


class Operations(Protocol):
    """What a decoder computes with. Activations are `[S, L, width]`, or `[S, width]`: S rows (sequences) of L tokens."""

    def linear(
        self,
        x: Array,
        weights: Weights,
        *,
        norm: Norm | None = None,
        activation: Activation | None = None,
        residual: Array | None = None,
        shards: int = 1,
    ) -> Array:
        """A linear layer.

        Args:
            x: `[..., inputs]`.
            weights: of the layer.
            norm: what x goes through first.
            activation: of a gated layer: the first half of its outputs goes through it, and multiplies the second.
            residual: added to the result.
            shards: devices that the inputs are split over, whose products are added up before bias and residual are.

        Returns: `[..., outputs]`, half of that if gated.
        """
        ...

    def attention(self, config: ModelConfig, layer: int, qkv: Array, positions: Array, q_norm: Norm | None, k_norm: Norm | None) -> Array:
        """What stands between the query, key and value projection and the output projection of a layer.

        Args:
            config: of the model, as one device has it.
            layer: which layer.
            qkv: `[S, L, (num_heads + 2 * num_kv_heads) * head_dim]`.
            positions: int32 `[S, L]`, the place of each token in its sequence.
            q_norm, k_norm: of each head, where the model has them.

        Returns: `[S, L, num_heads * head_dim]`.
        """
        ...

    def together(self, compute: Callable[[Operations, Any], Any], arrays: Any) -> Any:
        """`compute(operations, arrays)`, as one where that is faster.

        Args:
            compute: does nothing with the arrays, and with what it computes from them, but give them to `linear` and `attention` of the
                operations that it is called with; these have `shards` of 1.
            arrays: a tree of arrays that agree in all dimensions but the last.

        Returns: what `compute` does, a tree of arrays.
        """
        ...


def plain_linear(
    x: Array,
    weights: Weights,
    *,
    norm: Norm | None = None,
    activation: Activation | None = None,
    residual: Array | None = None,
    shards: int = 1,
) -> Array:
    """`Operations.linear` as XLA computes it."""
    weight, scale, bias = (None if part is None else unpacked(part) for part in weights)
    assert weight is not None
    y = project(x if norm is None else normalize(x, norm), as_matrix(weight), scale, shards)
    if bias is not None:
        y = y + bias
    if activation is not None:
        y = gated(y, activation)
    return y if residual is None else residual + y


class XlaOperations:
    """Plain arithmetic for XLA to compile.

    Args:
        attend: attention over the cache.
    """

    def __init__(self, attend: Attend) -> None:
        self._attend = attend

    linear = staticmethod(plain_linear)
    """See `Operations`."""

    def together(self, compute: Callable[[Operations, Any], Any], arrays: Any) -> Any:
        """See `Operations`: XLA puts together what it likes."""
        return compute(self, arrays)

    def attention(self, config: ModelConfig, layer: int, qkv: Array, positions: Array, q_norm: Norm | None, k_norm: Norm | None) -> Array:
        """See `Operations`."""
        c, own = config, config.layers[layer]
        rows, length = positions.shape
        qkv = qkv.reshape(rows, length, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        q, k, v = jnp.split(qkv, (c.num_heads, c.num_heads + c.num_kv_heads), axis=2)
        if q_norm is not None and k_norm is not None:
            q, k = normalize(q, q_norm), normalize(k, k_norm)
        cos, sin = rotary(positions, own.rope, c.head_dim)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = self._attend(layer, q, k, v, scale=c.query_scale, window=own.window, softcap=c.attention_softcap)
        return out.reshape(rows, length, c.num_heads * c.head_dim)


def normalize(x: Array, norm: Norm) -> Array:
    """Root mean square norm in float32 (Zhang & Sennrich, 2019) over the last dimension."""
    wide, weight = x.astype(jnp.float32), unpacked(norm.weight)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + norm.eps)
    if norm.unit_offset:
        return (wide * (1.0 + weight.astype(jnp.float32))).astype(x.dtype)
    return wide.astype(x.dtype) * weight


def gated(gate_up: Array, activation: Activation) -> Array:
    """`act(gate) * up` of `[..., 2 * width]`, gate first."""
    width = gate_up.shape[-1] // 2
    return activate(gate_up[..., :width], activation) * gate_up[..., width:]


def activate(x: Array, activation: Activation) -> Array:
    """The gated MLP's nonlinearity, by name."""
    if activation == "silu":
        return jax.nn.silu(x)
    return jax.nn.gelu(x, approximate=activation == "gelu_tanh")
