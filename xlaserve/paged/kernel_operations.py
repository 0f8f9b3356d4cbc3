"""A decoder's operations on the CPU kernels: each linear layer with what stands around it is one call, and so is attention with all that it
does to the cache. Places of a step that hold no token cost nothing.
"""

from __future__ import annotations

import jax
from jax import Array
from jax.sharding import NamedSharding

from xlaserve.kernels.attention import paged_attention
from xlaserve.kernels.linear import linear
from xlaserve.models.config import Activation, ModelConfig
from xlaserve.models.operations import Norm, Weights, plain_linear
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
        return linear(
            x,
            weights.weight,
            weights.scale,
            lengths=self._lengths,
            norm=None if norm is None else norm.weight,
            eps=0.0 if norm is None else norm.eps,
            unit_offset=norm is not None and norm.unit_offset,
            bias=weights.bias,
            activation=activation,
            residual=residual,
        )

    def attention(self, config: ModelConfig, layer: int, qkv: Array, positions: Array, q_norm: Norm | None, k_norm: Norm | None) -> Array:
        """See `Operations`."""
        own, step = config.layers[layer], self._cache.step
        cos, sin = (angle[:, :, 0] for angle in rotary(positions, own.rope, config.head_dim))
        out, self._cache.keys, self._cache.values = paged_attention(
            qkv,
            cos,
            sin,
            self._cache.keys,
            self._cache.values,
            step.block_tables,
            positions,
            self._sequences,
            layer=layer,
            q_norm=None if q_norm is None else q_norm.weight,
            k_norm=None if k_norm is None else k_norm.weight,
            heads=config.num_heads,
            scale=config.query_scale,
            window=own.window,
            softcap=config.attention_softcap,
            eps=config.norm_eps,
            unit_offset=config.unit_offset_norm,
        )
        return out
