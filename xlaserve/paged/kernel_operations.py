"""A decoder's operations on the CPU kernels: each linear layer with what stands around it is one call, and so is attention with all that it
does to the cache; or layers that consist of nothing else are one call all together. Places of a step that hold no token cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.sharding import NamedSharding

from xlaserve.kernels.attention import paged_attention
from xlaserve.kernels.chain import Chain, Value
from xlaserve.kernels.linear import linear
from xlaserve.models.config import Activation, ModelConfig
from xlaserve.models.operations import Norm, Operations, Weights, plain_linear
from xlaserve.models.rotary import rotary
from xlaserve.paged.attention import StepShape
from xlaserve.platforms.mesh import AXIS


def left_to_xla(parameter: jax.ShapeDtypeStruct) -> bool:
    """Whether a weight is multiplied by XLA here too: those of experts are, and those whose products devices add up."""
    names = parameter.sharding.spec if isinstance(parameter.sharding, NamedSharding) else ()
    return len(parameter.shape) == 3 or AXIS in names[1:]


class StackedKV:
    """Keys and values of all layers, as graphs with the CPU kernels hold them, for the duration of one step.

    Args:
        keys: `[layers, num_blocks, kv_heads, head_dim, block_size]`: the keys of a block lie side by side.
        values: `[layers, num_blocks, kv_heads, block_size, head_dim]`.
        step: the shape of the step.
    """

    def __init__(self, keys: Array, values: Array, step: StepShape) -> None:
        self.keys = keys
        self.values = values
        self.step = step

    @property
    def arrays(self) -> tuple[Array, ...]:
        """What the step leaves."""
        return self.keys, self.values


class KernelOperations:
    """`xlaserve.models.operations.Operations` on the CPU kernels.

    Args:
        cache: the cache of the step, which `attention` reads and writes layer after layer.
        lengths: int32 `[S]`, how many places of each row hold a token. None where every place counts.
        sequences: int32, how many tokens there are of each sequence: as `lengths`, unless all share one row of places.
    """

    def __init__(self, cache: StackedKV, lengths: Array | None, sequences: Array) -> None:
        self._cache = cache
        self._lengths = lengths
        self._sequences = sequences

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
        """See `Operations`."""
        if shards > 1:  # devices add up their products between what the kernel would do at once
            return plain_linear(x, weights, norm=norm, activation=activation, residual=residual, shards=shards)
        around: Any = _around(weights, norm, activation)
        return linear(x, weights.weight, weights.scale, lengths=self._lengths, residual=residual, **around)

    def attention(self, config: ModelConfig, layer: int, qkv: Array, positions: Array, q_norm: Norm | None, k_norm: Norm | None) -> Array:
        """See `Operations`."""
        cache, options = self._cache, _options(config, layer, q_norm, k_norm)
        cos, sin = _rotation(config, layer, positions)
        tables = cache.step.block_tables
        out, cache.keys, cache.values = paged_attention(
            qkv, cos, sin, cache.keys, cache.values, tables, positions, self._sequences, **options
        )
        return out

    def together(self, compute: Callable[[Operations, Any], Any], arrays: Any) -> Any:
        """See `Operations`."""
        cache, chain = self._cache, Chain(self._lengths)
        recorder: Any = _Recorder(cache, chain, self._sequences)
        leaves, structure = jax.tree.flatten(compute(recorder, jax.tree.map(chain.begin, arrays)))
        found, kv = chain.run(leaves)
        if kv is not None:
            cache.keys, cache.values = kv
        return jax.tree.unflatten(structure, found)


class _Recorder:
    """`Operations` on values of a chain: what is asked of it becomes steps.

    Args:
        cache: the cache as it is before the chain.
        chain: what to write to.
        sequences: as `KernelOperations` has it.
    """

    def __init__(self, cache: StackedKV, chain: Chain, sequences: Array) -> None:
        self._cache = cache
        self._chain = chain
        self._sequences = sequences
        self._rotations: dict[Any, tuple[Array, Array]] = {}

    def linear(
        self,
        x: Value,
        weights: Weights,
        *,
        norm: Norm | None = None,
        activation: Activation | None = None,
        residual: Value | None = None,
        shards: int = 1,
    ) -> Value:
        """See `Operations`."""
        assert shards == 1, "products that devices add up are no step"
        around: Any = _around(weights, norm, activation)
        return self._chain.linear(x, weights.weight, weights.scale, residual=residual, **around)

    def attention(self, config: ModelConfig, layer: int, qkv: Value, positions: Array, q_norm: Norm | None, k_norm: Norm | None) -> Value:
        """See `Operations`."""
        rope = config.layers[layer].rope
        if rope not in self._rotations:
            self._rotations[rope] = _rotation(config, layer, positions)
        cached = (self._cache.keys, self._cache.values, self._cache.step.block_tables, positions, self._sequences)
        return self._chain.attention(qkv, *self._rotations[rope], cached, **_options(config, layer, q_norm, k_norm))


def _around(weights: Weights, norm: Norm | None, activation: Activation | None) -> dict[str, Any]:
    """What stands around a product, as the kernel takes it."""
    normed = {} if norm is None else {"norm": norm.weight, "eps": norm.eps, "unit_offset": norm.unit_offset}
    return {"bias": weights.bias, "activation": activation, **normed}


def _options(config: ModelConfig, layer: int, q_norm: Norm | None, k_norm: Norm | None) -> dict[str, Any]:
    """A layer's attention, as the kernel takes it."""
    return {
        "layer": layer,
        "q_norm": None if q_norm is None else q_norm.weight,
        "k_norm": None if k_norm is None else k_norm.weight,
        "heads": config.num_heads,
        "scale": config.query_scale,
        "window": config.layers[layer].window,
        "softcap": config.attention_softcap,
        "eps": config.norm_eps,
        "unit_offset": config.unit_offset_norm,
    }


def _rotation(config: ModelConfig, layer: int, positions: Array) -> tuple[Array, Array]:
    """Cosines and sines of a layer, `[S, L, head_dim / 2]`."""
    cos, sin = rotary(positions, config.layers[layer].rope, config.head_dim)
    return cos[:, :, 0], sin[:, :, 0]
