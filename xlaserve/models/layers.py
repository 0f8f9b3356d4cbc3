"""Layers shared by all families, as Flax Linen modules without state. Parameters are named as in Hugging Face checkpoints.

Activations are `[S, L, D]`: S rows (sequences) of L tokens. Weights keep the checkpoint's `[out, in]` orientation, which XLA:CPU
reads at memory speed for single rows; for the CPU kernels they lie in panels (`xlaserve.kernels.panels`). Query, key and value, and gate
and up, are one parameter each (`FUSED`), because every argument of a compiled graph costs dispatch time and every matrix product costs a
launch.

Where a model is split over devices (`ModelConfig.shards`), layers compute one device's part: its heads, its share of the MLP's width, its
rows of the vocabulary. Attention and MLP then end with one sum over the devices, and activations between layers are whole on each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from xlaserve.kernels.panels import panel_shape, take_rows
from xlaserve.models.config import ModelConfig, Quantization
from xlaserve.models.operations import Norm, Operations, Weights
from xlaserve.models.quantization import dequantize
from xlaserve.platforms.mesh import AXIS, total

FUSED: dict[str, tuple[str, ...]] = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Parameter of ours -> the checkpoint's parameters that it concatenates along the output axis."""


FIRST_ROW = "first_row"
"""The one parameter that no checkpoint has: which row of the vocabulary a device's part of the embedding table begins with."""


SCALE = "weight_scale"
"""What a quantized weight has beside it, which no checkpoint has either: the scale of each of its rows."""


class Rows(NamedTuple):
    """Rows of one of the checkpoint's parameters.

    Args:
        total: as many as the checkpoint has.
        held: as many as one device has.
        copies: devices in a row that have the same ones.
    """

    total: int
    held: int
    copies: int = 1

    def of(self, shard: int) -> slice:
        """The rows of a device; fewer than `held`, where the vocabulary does not divide evenly."""
        first = shard // self.copies * self.held
        return slice(min(first, self.total), min(first + self.held, self.total))


def checkpoint_rows(config: ModelConfig, shards: int = 1) -> dict[str, Rows]:
    """Rows of each of the checkpoint's parameters that are fused, or of which each device has some.

    Args:
        config: the whole model.
        shards: devices that it is split over.
    """
    own = config.shard(shards)
    queries = Rows(config.num_heads * config.head_dim, own.num_heads * own.head_dim)
    keys = Rows(config.num_kv_heads * config.head_dim, own.num_kv_heads * own.head_dim, max(1, shards // config.num_kv_heads))
    width = Rows(config.intermediate_size, own.intermediate_size)
    vocab = Rows(config.vocab_size, own.vocab_rows)
    experts = {}
    if config.experts is not None and own.experts is not None:
        inner = Rows(config.experts.width, own.experts.width)
        experts = {"experts.gate_proj": inner, "experts.up_proj": inner}
    projections = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": width, "up_proj": width}
    return {**projections, **experts, "embed_tokens": vocab, "lm_head": vocab}


def rows_key(tensor: str) -> str:
    """Under which name `checkpoint_rows` has one of the checkpoint's tensors; an expert's go by other widths than the MLP's."""
    *path, module, _ = tensor.split(".")
    return f"experts.{module}" if "experts" in path else module


def zeros(_key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Initializer that only gives parameters their shape: weights always come from a checkpoint."""
    return jnp.zeros(shape, dtype)


def split(shards: int, *names: str | None) -> Callable[..., Any]:
    """`zeros` of a parameter that is split over devices along the dimension that is called `AXIS`."""
    return zeros if shards == 1 else nn.with_partitioning(zeros, names)


def weight_shape(outputs: int, inputs: int, dtype: DTypeLike, panels: bool) -> tuple[int, ...]:
    """`[outputs, inputs]`, or panels of that if they are wanted and the numbers divide into some."""
    return panel_shape(outputs, inputs, jnp.dtype(dtype).itemsize) if panels else (outputs, inputs)


class Linear(nn.Module):
    """A linear layer, weight `[out, in]` or panels of it. Each of `shards` devices has some of the outputs; with `sums`, some of the
    inputs, and the devices' products are added up.
    """

    inputs: int
    features: int
    use_bias: bool
    dtype: Any
    shards: int = 1
    sums: bool = False
    quantization: Quantization | None = None
    panels: bool = False

    @nn.compact
    def __call__(self, operations: Operations, x: Array, **around: Any) -> Array:
        """`Operations.linear` with this layer's weights."""
        names = (None, AXIS) if self.sums else (AXIS, None)
        kept = self.dtype if self.quantization is None else jnp.int8
        weight = self.param("weight", split(self.shards, *names), weight_shape(self.features, self.inputs, kept, self.panels), kept)
        scale = bias = None
        if self.quantization is not None:
            scale = self.param(SCALE, split(self.shards, names[0]), (self.features,), jnp.float32)
        if self.use_bias:
            bias = self.param("bias", split(self.shards, names[0]), (self.features,), self.dtype)
        return operations.linear(x, Weights(weight, scale, bias), shards=self.shards if self.sums else 1, **around)


def layer_of(
    config: ModelConfig, dtype: DTypeLike, inputs: int, features: int, use_bias: bool, *, sums: bool = False, name: str | None = None
) -> Linear:
    """A linear layer as the model has them."""
    c = config
    return Linear(inputs, features, use_bias, dtype, c.shards, sums, c.quantization, c.panels, name=name)


class RMSNorm(nn.Module):
    """Weights of an RMS norm over `width` numbers."""

    width: int
    eps: float
    unit_offset: bool
    dtype: Any

    @nn.compact
    def __call__(self) -> Norm:
        """The norm, for whoever applies it."""
        return Norm(self.param("weight", zeros, (self.width,), self.dtype), self.eps, self.unit_offset)


class Embedding(nn.Module):
    """Token embeddings `[rows, hidden]`; `logits` multiplies by the same table for models that tie them.

    Where devices share the table, each looks up the tokens whose rows it has. Which rows these are is data, and no question to the device:
    no list of what neuronx-cc takes names such an operation.
    """

    rows: int
    hidden_size: int
    dtype: Any
    shards: int = 1
    quantization: Quantization | None = None
    panels: bool = False

    def setup(self) -> None:
        kept = self.dtype if self.quantization is None else jnp.int8
        shape = weight_shape(self.rows, self.hidden_size, kept, self.panels)
        self.weight = self.param("weight", split(self.shards, AXIS, None), shape, kept)
        self.scale = None if self.quantization is None else self.param(SCALE, split(self.shards, AXIS), (self.rows,), jnp.float32)
        if self.shards > 1:
            self.first_row = self.param(FIRST_ROW, split(self.shards, AXIS), (1,), jnp.int32)

    def __call__(self, tokens: Array) -> Array:
        if self.shards == 1:
            return self._row(tokens)
        row = tokens - self.first_row
        found = self._row(jnp.clip(row, 0, self.rows - 1))
        return total(jnp.where(((row >= 0) & (row < self.rows))[..., None], found, 0), self.shards)

    def logits(self, operations: Operations, x: Array, norm: Norm) -> Array:
        """`x` `[..., hidden]`, before the norm -> `[..., rows]`."""
        return operations.linear(x, Weights(self.weight, self.scale), norm=norm)

    def _row(self, at: Array) -> Array:
        in_panels = self.weight.ndim > 2
        found = take_rows(self.weight, at) if in_panels else self.weight.at[at].get(mode="promise_in_bounds")
        return found if self.scale is None else dequantize(found, self.scale.at[at].get(mode="promise_in_bounds"), self.dtype)


class GatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))` (Shazeer, 2020)."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, operations: Operations, x: Array, norm: Norm, residual: Array | None) -> Array:
        """The norm comes before it, and the residual is added to what it gives."""
        c = self.config
        widen = layer_of(c, self.dtype, c.hidden_size, 2 * c.intermediate_size, c.mlp_bias, name="gate_up_proj")
        gated = widen(operations, x, norm=norm, activation=c.activation)
        narrow = layer_of(c, self.dtype, c.intermediate_size, c.hidden_size, c.mlp_bias, sums=True, name="down_proj")
        return narrow(operations, gated, residual=residual)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; keys and values go through `operations`, which own the cache."""

    config: ModelConfig
    layer: int
    dtype: Any

    def setup(self) -> None:
        c = self.config
        self.qkv_proj = layer_of(c, self.dtype, c.hidden_size, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim, c.qkv_bias)
        self.o_proj = layer_of(c, self.dtype, c.num_heads * c.head_dim, c.hidden_size, c.output_bias, sums=True)
        if c.qk_norm:
            self.q_norm = RMSNorm(c.head_dim, c.norm_eps, c.unit_offset_norm, self.dtype)
            self.k_norm = RMSNorm(c.head_dim, c.norm_eps, c.unit_offset_norm, self.dtype)

    def attend(self, operations: Operations, x: Array, positions: Array, norm: Norm) -> Array:
        """What the heads find, `[S, L, num_heads * head_dim]`; the norm comes before it."""
        q_norm, k_norm = (self.q_norm(), self.k_norm()) if self.config.qk_norm else (None, None)
        qkv = self.qkv_proj(operations, x, norm=norm)
        return operations.attention(self.config, self.layer, qkv, positions, q_norm, k_norm)

    def gather(self, operations: Operations, attended: Array, residual: Array | None) -> Array:
        """The output projection of that, `[..., hidden]`, to which the residual is added."""
        return self.o_proj(operations, attended, residual=residual)
