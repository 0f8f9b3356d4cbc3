"""The step functions that buckets name: model, paged attention and sampling as one pure function of flat arrays.

    step(params, kv, last_tokens, batch) -> (kv, last_tokens, sampled)

`kv` and `last_tokens` are donated: the compiled graph updates them in place. Sampled tokens stay on the device in `last_tokens`, one
place per sequence slot, where the next generate step reads them; the host reads `sampled` later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import SingleDeviceSharding

from xlaserve.buckets.ladder import Bucket, GenerateBucket
from xlaserve.buckets.layout import BANNED_AT, TOKENS_AT, Header, row_width, table_at
from xlaserve.models.config import ModelConfig
from xlaserve.models.decoder import CausalLM, parameter_shapes, parameter_tree
from xlaserve.paged.attention import PagedKV, StepShape
from xlaserve.platforms.platform import AttentionKind, Device
from xlaserve.sampling.sampler import SamplingRows, sample

Step = Callable[[tuple[Array, ...], tuple[Array, ...], Array, Array], tuple[tuple[Array, ...], Array, Array]]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """Everything that all graphs of an engine have in common.

    Args:
        model: the model.
        dtype: of weights and KV, as a NumPy name.
        num_blocks: KV blocks, the null block included.
        block_size: tokens per block.
        max_num_seqs: sequence slots.
        attention: which implementation reads the cache.
        branches: whether graphs may hold conditionals.
    """

    model: ModelConfig
    dtype: str
    num_blocks: int
    block_size: int
    max_num_seqs: int
    attention: AttentionKind
    branches: bool

    def parameters(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Name, shape and dtype of every parameter, in the order of `params`."""
        return parameter_shapes(self.model, jnp.dtype(self.dtype))

    def kv(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of `kv`: keys and values of layer 0, of layer 1, and so on."""
        shape = (self.num_blocks, self.model.num_kv_heads, self.block_size, self.model.head_dim)
        return (jax.ShapeDtypeStruct(shape, jnp.dtype(self.dtype)),) * (2 * self.model.num_layers)

    def last_tokens(self) -> jax.ShapeDtypeStruct:
        """Shape of the table of last tokens: one place per slot, and a spare one that padding writes to."""
        return jax.ShapeDtypeStruct((self.max_num_seqs + 1,), jnp.int32)


def make_step(spec: GraphSpec, bucket: Bucket) -> Step:
    """The step function of one bucket, ready to be traced."""
    names = tuple(spec.parameters())
    model = CausalLM(spec.model, jnp.dtype(spec.dtype))

    def step(params: tuple[Array, ...], kv: tuple[Array, ...], last_tokens: Array, batch: Array) -> tuple[tuple[Array, ...], Array, Array]:
        slot, start, length = batch[:, Header.SLOT], batch[:, Header.START], batch[:, Header.LENGTH]
        if isinstance(bucket, GenerateBucket):
            tokens = last_tokens.at[slot].get(mode="promise_in_bounds")[:, None]
            positions = start[:, None]
        else:
            tokens = batch[:, TOKENS_AT : table_at(bucket)]
            positions = start[:, None] + jnp.arange(bucket.length, dtype=jnp.int32)
        layers = list(zip(kv[::2], kv[1::2], strict=True))
        shape = StepShape(positions, batch[:, table_at(bucket) :], spec.block_size)
        cache = PagedKV(layers, shape, spec.attention)
        logits: Any = model.apply({"params": parameter_tree(names, params)}, tokens, positions, cache.attend, length - 1)
        sampled = sample(logits, _sampling(batch), branches=spec.branches)
        last_tokens = last_tokens.at[slot].set(sampled, mode="promise_in_bounds")
        return tuple(array for pair in cache.layers for array in pair), last_tokens, sampled

    step.__name__ = bucket.name.replace("-", "_")
    return step


def lower(spec: GraphSpec, bucket: Bucket, device: Device) -> jax.stages.Lowered:
    """Trace and lower one bucket's graph for `device`."""
    place = SingleDeviceSharding(device)

    def on_device(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)

    batch = jax.ShapeDtypeStruct((bucket.rows, row_width(bucket)), jnp.int32)
    jitted = jax.jit(make_step(spec, bucket), donate_argnums=(1, 2), keep_unused=True)
    return jitted.lower(
        tuple(on_device(p) for p in spec.parameters().values()),
        tuple(on_device(a) for a in spec.kv()),
        on_device(spec.last_tokens()),
        on_device(batch),
    )


def _sampling(batch: Array) -> SamplingRows:
    def as_float(column: Header) -> Array:
        return jax.lax.bitcast_convert_type(batch[:, column], jnp.float32)

    seed = jnp.stack((batch[:, Header.SEED_LOW], batch[:, Header.SEED_HIGH]), axis=1)
    return SamplingRows(
        temperature=as_float(Header.TEMPERATURE),
        top_k=batch[:, Header.TOP_K],
        top_p=as_float(Header.TOP_P),
        min_p=as_float(Header.MIN_P),
        seed=jax.lax.bitcast_convert_type(seed, jnp.uint32),
        place=batch[:, Header.PLACE],
        banned=batch[:, BANNED_AT:TOKENS_AT],
    )
