"""Layers shared by all families, as Flax Linen modules without state. Parameters are named as in Hugging Face checkpoints.

Activations are `[S, L, D]`: S rows (sequences) of L tokens. Weights keep the checkpoint's `[out, in]` orientation, which XLA:CPU
reads at memory speed for single rows. Query, key and value, and gate and up, are one parameter each (`FUSED`), because every
argument of a compiled graph costs dispatch time and every matrix product costs a launch.

Where a model is split over devices (`ModelConfig.shards`), layers compute one device's part: its heads, its share of the MLP's width, its
rows of the vocabulary. Attention and MLP then end with one sum over the devices, and activations between layers are whole on each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from xlaserve.models.config import Activation, ModelConfig, Rope
from xlaserve.platforms.mesh import AXIS, total

FUSED: dict[str, tuple[str, ...]] = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Parameter of ours -> the checkpoint's parameters that it concatenates along the output axis."""


FIRST_ROW = "first_row"
"""The one parameter that no checkpoint has: which row of the vocabulary a device's part of the embedding table begins with."""


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


class Attend(Protocol):
    """Attention of one layer over what is cached and what is new; the caller of the model decides where keys and values live."""

    def __call__(self, layer: int, q: Array, k: Array, v: Array, *, scale: float, window: int | None, softcap: float | None) -> Array:
        """Args: q `[S, L, num_heads, head_dim]`; k, v `[S, L, num_kv_heads, head_dim]`. Returns what q attends to, shaped as q."""
        ...


def zeros(_key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Initializer that only gives parameters their shape: weights always come from a checkpoint."""
    return jnp.zeros(shape, dtype)


def split(shards: int, *names: str | None) -> Callable[..., Any]:
    """`zeros` of a parameter that is split over devices along the dimension that is called `AXIS`."""
    return zeros if shards == 1 else nn.with_partitioning(zeros, names)


class Linear(nn.Module):
    """`x @ weight.T + bias`, weight `[out, in]`. Each of `shards` devices has some of the outputs; with `sums`, some of the inputs, and the
    devices' products are added up.
    """

    features: int
    use_bias: bool
    dtype: Any
    shards: int = 1
    sums: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        names = (None, AXIS) if self.sums else (AXIS, None)
        weight = self.param("weight", split(self.shards, *names), (self.features, x.shape[-1]), self.dtype)
        y = jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())))
        if self.sums:
            y = total(y, self.shards)
        if self.use_bias:
            y = y + self.param("bias", split(self.shards, names[0]), (self.features,), self.dtype)
        return y


class RMSNorm(nn.Module):
    """Root mean square norm in float32 (Zhang & Sennrich, 2019); with `unit_offset` the weight is stored as its difference from 1."""

    eps: float
    unit_offset: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        weight = self.param("weight", zeros, (x.shape[-1],), self.dtype)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        if self.unit_offset:
            return (wide * (1.0 + weight.astype(jnp.float32))).astype(x.dtype)
        return wide.astype(x.dtype) * weight


class Embedding(nn.Module):
    """Token embeddings `[rows, hidden]`; `logits` multiplies by the same table for models that tie them.

    Where devices share the table, each looks up the tokens whose rows it has. Which rows these are is data, and no question to the device:
    no list of what neuronx-cc takes names such an operation.
    """

    rows: int
    hidden_size: int
    dtype: Any
    shards: int = 1

    def setup(self) -> None:
        self.weight = self.param("weight", split(self.shards, AXIS, None), (self.rows, self.hidden_size), self.dtype)
        if self.shards > 1:
            self.first_row = self.param(FIRST_ROW, split(self.shards, AXIS), (1,), jnp.int32)

    def __call__(self, tokens: Array) -> Array:
        if self.shards == 1:
            return self.weight.at[tokens].get(mode="promise_in_bounds")
        row = tokens - self.first_row
        found = self.weight.at[jnp.clip(row, 0, self.rows - 1)].get(mode="promise_in_bounds")
        return total(jnp.where(((row >= 0) & (row < self.rows))[..., None], found, 0), self.shards)

    def logits(self, x: Array) -> Array:
        """`x` `[..., hidden]` -> `[..., rows]`."""
        return jax.lax.dot_general(x, self.weight, (((x.ndim - 1,), (1,)), ((), ())))


class GatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))` (Shazeer, 2020)."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        gate_up = Linear(2 * c.intermediate_size, c.mlp_bias, self.dtype, c.shards, name="gate_up_proj")(x)
        inner = gated(gate_up, c.activation)
        return Linear(c.hidden_size, c.mlp_bias, self.dtype, c.shards, sums=True, name="down_proj")(inner)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; keys and values go through `attend`, which owns the cache."""

    config: ModelConfig
    layer: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, positions: Array, attend: Attend) -> Array:
        c = self.config
        own = c.layers[self.layer]
        rows, length = x.shape[:2]
        qkv = Linear((c.num_heads + 2 * c.num_kv_heads) * c.head_dim, c.qkv_bias, self.dtype, c.shards, name="qkv_proj")(x)
        qkv = qkv.reshape(rows, length, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        q, k, v = jnp.split(qkv, (c.num_heads, c.num_heads + c.num_kv_heads), axis=2)
        if c.qk_norm:
            q = RMSNorm(c.norm_eps, c.unit_offset_norm, self.dtype, name="q_norm")(q)
            k = RMSNorm(c.norm_eps, c.unit_offset_norm, self.dtype, name="k_norm")(k)
        cos, sin = rotary(positions, own.rope, c.head_dim)
        out = attend(
            self.layer, rotate(q, cos, sin), rotate(k, cos, sin), v, scale=c.query_scale, window=own.window, softcap=c.attention_softcap
        )
        out = out.reshape(rows, length, c.num_heads * c.head_dim)
        return Linear(c.hidden_size, c.output_bias, self.dtype, c.shards, sums=True, name="o_proj")(out)


def gated(gate_up: Array, activation: Activation) -> Array:
    """`act(gate) * up` of `[..., 2 * width]`, gate first."""
    width = gate_up.shape[-1] // 2
    return activate(gate_up[..., :width], activation) * gate_up[..., width:]


def activate(x: Array, activation: Activation) -> Array:
    """The gated MLP's nonlinearity, by name."""
    if activation == "silu":
        return jax.nn.silu(x)
    return jax.nn.gelu(x, approximate=activation == "gelu_tanh")


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
