"""A mixture of experts in place of the MLP: for each token the few experts that a router chooses (Shazeer et al., 2017; Qwen3-MoE).

All experts of a layer are two parameters, `[experts, out, in]`. Shapes never depend on what is chosen, and what a token gets depends on no
other token. Where a model is split, each device has a part of every expert's width.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from xlaserve.models.config import Experts, ModelConfig
from xlaserve.models.layers import Linear, split
from xlaserve.models.operations import Norm, Operations, gated, normalize
from xlaserve.platforms.mesh import AXIS, total
from xlaserve.platforms.platform import ExpertsKind, TopKKind
from xlaserve.platforms.top_k import top_k

TOKENS_AT_ONCE = 128
"""Tokens that are multiplied by all experts at a time: more would read the weights less often, and keep more results of each expert."""


class ExpertMLP(nn.Module):
    """`sum of p_e * down_e(act(gate_e(x)) * up_e(x))` over the experts that the router finds most likely, with their probabilities p.

    Args:
        config: the model, with experts.
        dtype: of weights and activations.
        top_k: how the most likely are found.
        kind: how they are computed.
    """

    config: ModelConfig
    dtype: Any
    top_k: TopKKind
    kind: ExpertsKind

    @nn.compact
    def __call__(self, operations: Operations, x: Array, norm: Norm, residual: Array | None) -> Array:
        """As `GatedMLP`. The router computes through `operations`; products with experts are XLA's everywhere."""
        c = self.config
        x = normalize(x, norm)
        assert c.experts is not None
        logits = Linear(c.hidden_size, c.experts.count, False, self.dtype, name="gate")(operations, x)
        tokens = x.reshape(-1, c.hidden_size)
        chosen, weights = route(logits.reshape(-1, c.experts.count), c.experts, self.top_k)
        weights = weights.astype(self.dtype)
        gate_up, down = _Experts(c, self.dtype, name="experts")()
        if self.kind == "chosen":
            y = by_choice(tokens, chosen, weights, gate_up, down, c)
        elif 3 * chosen.size < c.experts.count:  # a copy is read, written and read again
            y = by_copies(tokens, chosen, weights, gate_up, down, c)
        else:
            y = by_all(tokens, chosen, weights, gate_up, down, c)
        y = total(y.astype(self.dtype), c.shards).reshape(x.shape)
        return y if residual is None else residual + y


class _Experts(nn.Module):
    """The parameters: gate and up `[experts, 2 * width, hidden]`, down `[experts, hidden, width]`."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        c = self.config
        assert c.experts is not None
        count, width = c.experts.count, c.experts.width
        gate_up = _Stacked((count, 2 * width, c.hidden_size), 1, c.shards, self.dtype, name="gate_up_proj")()
        return gate_up, _Stacked((count, c.hidden_size, width), 2, c.shards, self.dtype, name="down_proj")()


class _Stacked(nn.Module):
    """One parameter of all experts, of which each device has a part along `axis`."""

    shape: tuple[int, int, int]
    axis: int
    shards: int
    dtype: Any

    @nn.compact
    def __call__(self) -> Array:
        names = tuple(AXIS if axis == self.axis else None for axis in range(3))
        return self.param("weight", split(self.shards, *names), self.shape, self.dtype)


def route(logits: Array, experts: Experts, kind: TopKKind) -> tuple[Array, Array]:
    """The experts of each token.

    Args:
        logits: `[tokens, experts]`.
        experts: how many are chosen, and whether their probabilities are made to add up to 1.
        kind: how the most likely are found.

    Returns:
        Their indices, int32, and probabilities, float32, `[tokens, per_token]`.
    """
    values, chosen = top_k(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), experts.per_token, kind)
    if experts.normalized:
        values = values / jnp.sum(values, axis=-1, keepdims=True)
    # What a native top-k gives is not known to be in range, and gathers want to know.
    return jnp.clip(chosen, 0, experts.count - 1), values


def by_choice(x: Array, chosen: Array, weights: Array, gate_up: Array, down: Array, c: ModelConfig) -> Array:
    """One token and expert after the other, in the order of experts: work and bytes grow with what is chosen alone.

    XLA:CPU multiplies a single row by a slice of the weights where they are, and one expert's stay in its cache for the next token; more
    rows at once make it copy the slice. Args and result as of `by_all`.
    """
    each = chosen.shape[1]
    flat = chosen.reshape(-1)
    order = jnp.argsort(flat)

    def one(step: Array, out: Array) -> Array:
        at = order[step]
        row = jax.lax.dynamic_slice_in_dim(x, at // each, 1)
        own, back = (jax.lax.dynamic_index_in_dim(array, flat[at], keepdims=False) for array in (gate_up, down))
        return jax.lax.dynamic_update_slice_in_dim(out, _times(gated(_times(row, own), c.activation), back), at, 0)

    out = jax.lax.fori_loop(0, flat.size, one, jnp.zeros((flat.size, x.shape[1]), x.dtype))
    return _weighted(out.reshape(*chosen.shape, -1), weights)


def by_copies(x: Array, chosen: Array, weights: Array, gate_up: Array, down: Array, c: ModelConfig) -> Array:
    """From copies of the chosen experts' weights: for so few tokens that these are less than all. Args and result as of `by_all`."""
    own, back = (array.at[chosen.reshape(-1)].get(mode="promise_in_bounds") for array in (gate_up, down))
    rows = jnp.repeat(x, chosen.shape[1], axis=0)[:, None]
    batched = (((2,), (2,)), ((0,), (0,)))
    inner = gated(jax.lax.dot_general(rows, own, batched), c.activation)
    return _weighted(jax.lax.dot_general(inner, back, batched).reshape(*chosen.shape, -1), weights)


def by_all(x: Array, chosen: Array, weights: Array, gate_up: Array, down: Array, c: ModelConfig) -> Array:
    """Every token through every expert, with probability 0 where it was not chosen: two products whatever the router says.

    Args:
        x: `[tokens, hidden]`.
        chosen: int32 `[tokens, per_token]`.
        weights: as `chosen`, of the type of `x`.
        gate_up, down: as `_Experts` has them.
        c: the model.

    Returns:
        float32 `[tokens, hidden]`; where devices share the experts' width, what one of them has to add.
    """
    experts = jnp.arange(gate_up.shape[0], dtype=jnp.int32)
    # No scatter: of the few that were chosen, at most one is each expert.
    share = jnp.sum(jnp.where(chosen[:, :, None] == experts, weights[:, :, None], 0), axis=1)

    def some(part: tuple[Array, Array]) -> Array:
        rows, parts = part
        inner = jax.lax.dot_general(gate_up, rows, (((2,), (1,)), ((), ())))  # [experts, 2 * width, tokens]
        inner = gated(jnp.swapaxes(inner, 1, 2), c.activation) * parts.T[:, :, None]
        out = jax.lax.dot_general(inner, down, (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32)
        return jnp.sum(out, axis=0)

    tokens = x.shape[0]
    if tokens <= TOKENS_AT_ONCE:
        return some((x, share))
    pieces = -(-tokens // TOKENS_AT_ONCE)
    padding = ((0, pieces * TOKENS_AT_ONCE - tokens), (0, 0))
    parts = tuple(jnp.pad(array, padding).reshape(pieces, TOKENS_AT_ONCE, -1) for array in (x, share))
    return jax.lax.map(some, parts).reshape(-1, x.shape[1])[:tokens]


def _times(x: Array, weight: Array) -> Array:
    return jax.lax.dot_general(x, weight, (((1,), (1,)), ((), ())))


def _weighted(out: Array, weights: Array) -> Array:
    """`[tokens, per_token, hidden]` -> float32 `[tokens, hidden]`."""
    return jnp.sum(out.astype(jnp.float32) * weights[:, :, None].astype(jnp.float32), axis=1)
