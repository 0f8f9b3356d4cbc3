"""The decoder-only transformer that every family is an instance of: one pure function of parameters, tokens and what it computes with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from xlaserve.kernels.packs import Packed
from xlaserve.models.config import ModelConfig
from xlaserve.models.experts import ExpertMLP
from xlaserve.models.layers import Attention, Embedding, GatedMLP, RMSNorm, layer_of
from xlaserve.models.operations import Norm, Operations, XlaOperations, normalize
from xlaserve.platforms.mesh import concatenated, spread, with_axis
from xlaserve.platforms.platform import ExpertsKind, TopKKind


class Attended(NamedTuple):
    """Tokens whose last layer is computed up to what they attend to: what any of them becomes follows from these two alone.

    Args:
        x: `[..., hidden]`, hidden states before the last layer.
        attended: `[..., num_heads * head_dim]`, what the last layer's heads have found.
    """

    x: Array
    attended: Array

    def at(self, places: Array) -> Attended:
        """Those at some places, counted through all rows."""
        return Attended(*(a.reshape(-1, a.shape[-1]).at[places].get(mode="promise_in_bounds") for a in self))


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream; with `sandwich_norm` each followed by a norm too.

    In two halves, since only the first has to know all tokens: whoever wants few of them takes these in between.
    """

    config: ModelConfig
    layer: int
    dtype: Any
    top_k: TopKKind
    experts: ExpertsKind

    def setup(self) -> None:
        c = self.config

        def norm() -> RMSNorm:
            return RMSNorm(c.hidden_size, c.norm_eps, c.unit_offset_norm, self.dtype)

        self.input_layernorm = norm()
        self.self_attn = Attention(c, self.layer, self.dtype)
        self.post_attention_layernorm = norm()
        if c.sandwich_norm:
            self.pre_feedforward_layernorm = norm()
            self.post_feedforward_layernorm = norm()
        chooses = c.experts is not None and self.layer not in c.dense_layers
        self.mlp = ExpertMLP(c, self.dtype, self.top_k, self.experts) if chooses else GatedMLP(c, self.dtype)

    def attend(self, operations: Operations, x: Array, positions: Array) -> Attended:
        """The first half: keys and values go to the cache, and every token reads it. `x` is `[S, L, hidden]`."""
        return Attended(x, self.self_attn.attend(operations, x, positions, self.input_layernorm()))

    def finish(self, operations: Operations, tokens: Attended) -> Array:
        """The second half, `[..., hidden]`, of as many tokens as are wanted."""
        x, attended = tokens
        if self.config.sandwich_norm:
            x = x + normalize(self.self_attn.gather(operations, attended, None), self.post_attention_layernorm())
            mixed = self.mlp(operations, x, self.pre_feedforward_layernorm(), None)
            return x + normalize(mixed, self.post_feedforward_layernorm())
        x = self.self_attn.gather(operations, attended, x)
        return self.mlp(operations, x, self.post_attention_layernorm(), x)


class Backbone(nn.Module):
    """Embeddings, layers, and the final norm for whoever makes logits; for tied models, what makes them."""

    config: ModelConfig
    dtype: Any
    top_k: TopKKind
    experts: ExpertsKind

    def setup(self) -> None:
        c = self.config
        self.embed_tokens = Embedding(c.vocab_rows, c.hidden_size, self.dtype, c.shards, c.quantization, c.panels and c.tie_embeddings)
        self.blocks = [DecoderLayer(c, i, self.dtype, self.top_k, self.experts, name=f"layers.{i}") for i in range(c.num_layers)]
        self.norm = RMSNorm(c.hidden_size, c.norm_eps, c.unit_offset_norm, self.dtype)

    def attend(self, operations: Operations, tokens: Array, positions: Array) -> Attended:
        """Every token, but for the last layer's second half."""
        x = self.embed_tokens(tokens)
        if self.config.embedding_scale != 1.0:
            # The factor is rounded to the model's dtype before it multiplies, as the reference implementation does.
            x = x * jnp.asarray(self.config.embedding_scale, self.dtype)
        return _together(self.config, operations, partial(self._all, positions=positions), x)

    def _all(self, operations: Operations, x: Array, positions: Array) -> Attended:
        for block in self.blocks[:-1]:
            x = block.finish(operations, block.attend(operations, x, positions))
        return self.blocks[-1].attend(operations, x, positions)

    def finish(self, operations: Operations, tokens: Attended) -> Array:
        """Hidden states before the final norm, `[..., hidden]`."""
        return self.blocks[-1].finish(operations, tokens)

    def final_norm(self) -> Norm:
        """What hidden states go through before they become logits."""
        return self.norm()

    def logits(self, operations: Operations, x: Array) -> Array:
        """Logits from hidden states through the embedding table; where devices share it, those of its rows."""
        return self.embed_tokens.logits(operations, x, self.norm())


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
        operations: what to compute with; they own the cache of keys and values.
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
            c = self.config
            self.lm_head = layer_of(c, self.dtype, c.hidden_size, c.vocab_rows, use_bias=False)

    def __call__(self, operations: Operations, tokens: Array, positions: Array, rows: Array | None = None) -> Array:
        found = self.attend(operations, tokens, positions)
        if rows is not None:
            found = found.at(jnp.arange(rows.shape[0]) * tokens.shape[1] + rows)
        return self.head(operations, found)

    def attend(self, operations: Operations, tokens: Array, positions: Array) -> Attended:
        """All that tokens of one step have to know of each other, of `[S, L]` tokens."""
        return self.model.attend(operations, tokens, positions)

    def head(self, operations: Operations, tokens: Attended) -> Array:
        """float32 logits `[..., vocab]` after some tokens: what is left of the last layer, the final norm and the output head."""
        logits = _together(self.config, operations, self._logits, tokens)
        if self.config.shards > 1:
            logits = concatenated(logits, self.config.shards)[..., : self.config.vocab_size]
        logits = logits.astype(jnp.float32)
        if self.config.logit_softcap is not None:
            logits = jnp.tanh(logits / self.config.logit_softcap) * self.config.logit_softcap
        return logits

    def _logits(self, operations: Operations, tokens: Attended) -> Array:
        x = self.model.finish(operations, tokens)
        return self.model.logits(operations, x) if self.config.tie_embeddings else self.lm_head(operations, x, norm=self.model.final_norm())


def _together(config: ModelConfig, operations: Operations, compute: Callable[[Operations, Any], Any], arrays: Any) -> Any:
    """`compute(operations, arrays)` of layers; as one where these are nothing but linear layers and attention."""
    alone = config.shards == 1 and config.experts is None and not config.sandwich_norm
    return operations.together(compute, arrays) if alone else compute(operations, arrays)


@cache
def parameter_shapes(config: ModelConfig, dtype: Any) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Name, shape and dtype of every parameter, in a fixed order.

    Known once for each model, since Flax has to trace it: a start asks for every graph.

    Args:
        config: the model, or what one device has of it; then the shapes are what all devices together hold, and say how it is split.
        dtype: of the weights.
    """

    def attend(layer: int, q: Array, k: Array, v: Array, **options: Any) -> Array:
        return q

    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    model, operations = CausalLM(config, dtype), XlaOperations(attend)
    init = with_axis(lambda t: model.init(jax.random.key(0), operations, t, t)["params"], config.shards)
    tree = jax.eval_shape(init, tokens)
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))[0]
    return MappingProxyType({".".join(str(p.key) for p in path): _whole(leaf, config.shards) for path, leaf in leaves})


def _whole(parameter: Any, shards: int) -> jax.ShapeDtypeStruct:
    if isinstance(parameter, nn.Partitioned):
        return spread(parameter.value, shards, PartitionSpec(*parameter.names))
    return spread(parameter, shards)


def parameter_tree(names: tuple[str, ...], values: tuple[Array | Packed, ...]) -> dict[str, Any]:
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
