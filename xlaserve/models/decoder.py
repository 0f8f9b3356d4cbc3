"""The decoder-only transformer that every family is an instance of, as one pure function of parameters, tokens and `attend`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from xlaserve.models.config import ModelConfig
from xlaserve.models.experts import ExpertMLP
from xlaserve.models.layers import Attend, Attention, Embedding, GatedMLP, Linear, RMSNorm
from xlaserve.platforms.mesh import concatenated, spread, with_axis
from xlaserve.platforms.platform import ExpertsKind, TopKKind


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream; with `sandwich_norm` each followed by a norm too."""

    config: ModelConfig
    layer: int
    dtype: Any
    top_k: TopKKind
    experts: ExpertsKind

    @nn.compact
    def __call__(self, x: Array, positions: Array, attend: Attend) -> Array:
        c = self.config

        def norm(name: str, y: Array) -> Array:
            return RMSNorm(c.norm_eps, c.unit_offset_norm, self.dtype, name=name)(y)

        attended = Attention(c, self.layer, self.dtype, name="self_attn")(norm("input_layernorm", x), positions, attend)
        if c.sandwich_norm:
            x = x + norm("post_attention_layernorm", attended)
            mixed = GatedMLP(c, self.dtype, name="mlp")(norm("pre_feedforward_layernorm", x))
            return x + norm("post_feedforward_layernorm", mixed)
        x = x + attended
        normed = norm("post_attention_layernorm", x)
        if c.experts is None or self.layer in c.dense_layers:
            return x + GatedMLP(c, self.dtype, name="mlp")(normed)
        return x + ExpertMLP(c, self.dtype, self.top_k, self.experts, name="mlp")(normed)


class Backbone(nn.Module):
    """Embeddings, layers, final norm; returns hidden states and, for tied models, what turns them into logits."""

    config: ModelConfig
    dtype: Any
    top_k: TopKKind
    experts: ExpertsKind

    def setup(self) -> None:
        c = self.config
        self.embed_tokens = Embedding(c.vocab_rows, c.hidden_size, self.dtype, c.shards)
        self.blocks = [DecoderLayer(c, i, self.dtype, self.top_k, self.experts, name=f"layers.{i}") for i in range(c.num_layers)]
        self.norm = RMSNorm(c.norm_eps, c.unit_offset_norm, self.dtype)

    def __call__(self, tokens: Array, positions: Array, attend: Attend) -> Array:
        x = self.embed_tokens(tokens)
        if self.config.embedding_scale != 1.0:
            # The factor is rounded to the model's dtype before it multiplies, as the reference implementation does.
            x = x * jnp.asarray(self.config.embedding_scale, self.dtype)
        for block in self.blocks:
            x = block(x, positions, attend)
        return self.norm(x)

    def logits(self, x: Array) -> Array:
        """Logits from hidden states through the embedding table; where devices share it, those of its rows."""
        return self.embed_tokens.logits(x)


class CausalLM(nn.Module):
    """A decoder with its output head.

    Args:
        config: the model, or what one device has of it.
        dtype: of weights and activations.
        top_k: how the router of a mixture of experts finds the most likely ones.
        experts: how these are computed.

    Args of the call:
        tokens: int32 `[S, L]`, every value within the vocabulary.
        positions: int32 `[S, L]`, the place of each token in its sequence.
        attend: attention over cached and new keys and values.
        rows: int32 `[S]`, which of the L places of each row is wanted; None for all.

    Returns:
        float32 logits, `[S, vocab]`, or `[S, L, vocab]` where `rows` is None.
    """

    config: ModelConfig
    dtype: Any
    top_k: TopKKind = "sort"
    experts: ExpertsKind = "all"

    def setup(self) -> None:
        self.model = Backbone(self.config, self.dtype, self.top_k, self.experts)
        if not self.config.tie_embeddings:
            self.lm_head = Linear(self.config.vocab_rows, False, self.dtype, self.config.shards)

    def __call__(self, tokens: Array, positions: Array, attend: Attend, rows: Array | None = None) -> Array:
        x = self.hidden(tokens, positions, attend)
        if rows is not None:
            x = jnp.take_along_axis(x, rows[:, None, None], axis=1, mode="promise_in_bounds")[:, 0]
        return self.head(x)

    def hidden(self, tokens: Array, positions: Array, attend: Attend) -> Array:
        """Hidden states `[S, L, hidden]` after the final norm."""
        return self.model(tokens, positions, attend)

    def head(self, x: Array) -> Array:
        """float32 logits `[..., vocab]` of hidden states `[..., hidden]`."""
        logits = self.model.logits(x) if self.config.tie_embeddings else self.lm_head(x)
        if self.config.shards > 1:
            logits = concatenated(logits, self.config.shards)[..., : self.config.vocab_size]
        logits = logits.astype(jnp.float32)
        if self.config.logit_softcap is not None:
            logits = jnp.tanh(logits / self.config.logit_softcap) * self.config.logit_softcap
        return logits


@cache
def parameter_shapes(config: ModelConfig, dtype: Any) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Name, shape and dtype of every parameter, in a fixed order: the order of the flat tuple that graphs take.

    Known once for each model, since Flax has to trace it: a start asks for every graph.

    Args:
        config: the model, or what one device has of it; then the shapes are what all devices together hold, and say how it is split.
        dtype: of the weights.
    """

    def attend(_layer: int, q: Array, _k: Array, _v: Array, **_options: Any) -> Array:
        return q

    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    model = CausalLM(config, dtype)
    init = with_axis(lambda t: model.init(jax.random.key(0), t, t, attend)["params"], config.shards)
    tree = jax.eval_shape(init, tokens)
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))[0]
    return MappingProxyType({".".join(str(p.key) for p in path): _whole(leaf, config.shards) for path, leaf in leaves})


def _whole(parameter: Any, shards: int) -> jax.ShapeDtypeStruct:
    if isinstance(parameter, nn.Partitioned):
        return spread(parameter.value, shards, PartitionSpec(*parameter.names))
    return spread(parameter, shards)


def parameter_tree(names: tuple[str, ...], values: tuple[Array, ...]) -> dict[str, Any]:
    """The nested dict that Flax takes, from the flat names and values of `parameter_shapes`."""
    tree: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        *path, leaf = _split(name)
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def _split(name: str) -> list[str]:
    """Path of a parameter: dots separate modules, but the index of a layer belongs to its name ("layers.0")."""
    parts: list[str] = []
    for part in name.split("."):
        if part.isdigit():
            parts[-1] += f".{part}"
        else:
            parts.append(part)
    return parts
