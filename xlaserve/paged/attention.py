"""Attention over the paged KV cache, inside graphs: write what is new, then read everything through block tables.

Keys and values of one layer are `[num_blocks, kv_heads, block_size, head_dim]`: a block's head is one contiguous piece, so that a gather
of blocks is a gather of rows and its result needs no transposition before the matrix products. Block 0 is the null block: padding
writes there and masked reads come from there, and no index is ever out of range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from xlaserve.paged.mosaic_attention import mosaic_attention
from xlaserve.paged.native_attention import TARGET, NativeKernel, find_kernel
from xlaserve.paged.tile import tile_blocks
from xlaserve.platforms.native_call import native_call

MASKED = -1e30
"""Score of a masked key: finite, and the softmax of it is exactly zero beside any real score."""


class StepShape(NamedTuple):
    """The step's shape-giving inputs that attention reads.

    Args:
        positions: int32 `[S, L]`, the place of each token in its sequence.
        block_tables: int32 `[S, P]`, the blocks of each row's sequence; unused places hold 0.
        block_size: tokens per block, a power of two.
    """

    positions: Array
    block_tables: Array
    block_size: int


class PagedKV:
    """The KV cache of one traced step: `attend` reads and writes layer after layer, `layers` is the cache afterwards.

    Args:
        layers: for each layer keys and values, `[num_blocks, kv_heads, block_size, head_dim]` where `attend` is called.
        step: positions and block tables.
        kind: which implementation reads the cache: "tiled", "gather", "mosaic" or the name of a native kernel.

    Raises:
        ConfigError: there is no kernel of that name.
    """

    def __init__(self, layers: list[tuple[Array, Array]], step: StepShape, kind: str) -> None:
        self.layers = layers
        self.step = step
        self._read = READERS.get(kind) or _native(find_kernel(kind))
        self._slices = kind in SLICING

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Keys and values of layer 0, of layer 1, and so on."""
        return tuple(array for pair in self.layers for array in pair)

    def attend(self, layer: int, q: Array, k: Array, v: Array, *, scale: float, window: int | None, softcap: float | None) -> Array:
        """`xlaserve.models.operations.Attend` over this cache."""
        keys, values = self.layers[layer]
        keys, values = (_write(cache, new, self.step, self._slices) for cache, new in ((keys, k), (values, v)))
        self.layers[layer] = keys, values
        rows, length, heads, head_dim = q.shape
        groups = heads // k.shape[2]
        # [S, kv_heads, groups * L, head_dim]: all queries that share a key head meet it in one matrix product.
        grouped = (q.astype(jnp.float32) * scale).astype(q.dtype).reshape(rows, length, k.shape[2], groups, head_dim)
        grouped = grouped.transpose(0, 2, 3, 1, 4).reshape(rows, k.shape[2], groups * length, head_dim)
        out = self._read(grouped, keys, values, self.step, window, softcap)
        out = out.reshape(rows, k.shape[2], groups, length, head_dim).transpose(0, 3, 1, 2, 4)
        return out.reshape(rows, length, heads, head_dim).astype(q.dtype)


def copy_blocks(kv: tuple[Array, ...], source: Array, target: Array) -> tuple[Array, ...]:
    """Copy whole blocks, in all layers.

    Args:
        kv: each `[num_blocks, ...]`.
        source, target: int32 `[N]`; no block is both read and written, except that the null block pads both.
    """
    return tuple(array.at[target].set(array.at[source].get(mode="promise_in_bounds"), mode="promise_in_bounds") for array in kv)


def _write(cache: Array, new: Array, step: StepShape, slices: bool) -> Array:
    """Put `new` `[S, L, kv_heads, head_dim]` in its blocks.

    A row of several tokens starts at a block's first place and is written block by block: what lies past the row's last token
    lands in the sequence's own last block, where later tokens overwrite it, or in the null block. With `slices` a single token is a slice
    that is updated: of a scatter of one row XLA makes two or three kernels on a GPU, one after the other, and of this one.
    """
    rows, length, heads, head_dim = new.shape
    size = step.block_size
    first = jax.lax.div(step.positions[:, 0], jnp.int32(size))
    if length == 1:
        blocks = jnp.take_along_axis(step.block_tables, first[:, None], axis=1, mode="promise_in_bounds")[:, 0]
        if slices and rows == 1:
            piece = new.reshape(1, heads, 1, head_dim).astype(cache.dtype)
            return jax.lax.dynamic_update_slice(cache, piece, (blocks[0], 0, step.positions[0, 0] & (size - 1), 0))
        return cache.at[blocks, :, step.positions[:, 0] & (size - 1)].set(new[:, 0].astype(cache.dtype), mode="promise_in_bounds")
    count = length // size
    wanted = first[:, None] + jnp.arange(count, dtype=jnp.int32)
    width = step.block_tables.shape[1]
    blocks = jnp.take_along_axis(step.block_tables, jnp.minimum(wanted, width - 1), axis=1, mode="promise_in_bounds")
    # A padded row may reach past its table: those blocks are padding, so they go to the null block.
    blocks = jnp.where(wanted < width, blocks, 0)
    pieces = new.reshape(rows, count, size, heads, head_dim).transpose(0, 1, 3, 2, 4)
    return cache.at[blocks.reshape(-1)].set(
        pieces.reshape(rows * count, heads, size, head_dim).astype(cache.dtype), mode="promise_in_bounds"
    )


def _blocks(cache: Array, table: Array) -> Array:
    """The blocks of `table` `[S, N]` as `[S, kv_heads, N * block_size, head_dim]`."""
    num_blocks, heads, size, head_dim = cache.shape
    flat = cache.reshape(num_blocks * heads, size, head_dim)
    index = table[:, None, :] * heads + jnp.arange(heads, dtype=jnp.int32)[None, :, None]
    return flat.at[index].get(mode="promise_in_bounds").reshape(table.shape[0], heads, table.shape[1] * size, head_dim)


def _values(cache: Array, table: Array, first_key: Array | int, step: StepShape) -> Array:
    """`_blocks` of values, zero past each row's last position: what another sequence left there may be infinite, and 0 * inf is no 0."""
    v = _blocks(cache, table)
    keys = first_key + jnp.arange(v.shape[2], dtype=jnp.int32)
    return jnp.where((keys <= step.positions[:, -1:])[:, None, :, None], v, 0)


def _scores(q: Array, k: Array, first_key: Array | int, step: StepShape, window: int | None, softcap: float | None) -> Array:
    """Masked scores, float32 `[S, kv_heads, groups * L, K]`; key 0 of `k` stands at `first_key` in its sequence."""
    scores = jax.lax.dot_general(q, k, (((3,), (3,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)
    if softcap is not None:
        scores = jnp.tanh(scores / softcap) * softcap
    groups = q.shape[2] // step.positions.shape[1]
    at = jnp.tile(step.positions, (1, groups))[:, None, :, None]
    keys = first_key + jnp.arange(k.shape[2], dtype=jnp.int32)
    seen = keys <= at
    if window is not None:
        seen = seen & (keys > at - window)
    return jnp.where(seen, scores, MASKED)


def _weigh(weights: Array, v: Array) -> Array:
    return jax.lax.dot_general(weights.astype(v.dtype), v, (((3,), (2,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)


def _gathered(q: Array, keys: Array, values: Array, step: StepShape, window: int | None, softcap: float | None) -> Array:
    """The reference: read every block of every table, then one softmax. Static shapes and no control flow at all."""
    scores = _scores(q, _blocks(keys, step.block_tables), 0, step, window, softcap)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return _weigh(weights, _values(values, step.block_tables, 0, step)) / jnp.sum(weights, axis=-1, keepdims=True)


def _tiled(q: Array, keys: Array, values: Array, step: StepShape, window: int | None, softcap: float | None) -> Array:
    """Online softmax over tiles of blocks (Milakov & Gimelshein 2018; Dao 2022), from the first tile in any window to the last in use.

    The number of tiles is read from the positions at run time: time follows the context in use, and one graph serves all of it.
    """
    rows, heads, queries, head_dim = q.shape
    size, width = step.block_size, step.block_tables.shape[1]
    tile = tile_blocks(rows, width, size)
    table = jnp.pad(step.block_tables, ((0, 0), (0, -width % tile)))
    start = jnp.int32(0)
    if window is not None:
        start = jnp.maximum(jnp.min(step.positions) - window + 1, 0) // (tile * size)
    end = jnp.max(step.positions) // (tile * size) + 1

    def add_tile(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        peak, total, out = carry
        blocks = jax.lax.dynamic_slice(table, (0, i * tile), (rows, tile))
        scores = _scores(q, _blocks(keys, blocks), i * tile * size, step, window, softcap)
        new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - new_peak[..., None])
        # A row whose keys were all masked so far carries weights of 1 at a peak of MASKED; the first real score scales them to zero.
        decay = jnp.exp(peak - new_peak)
        return (
            new_peak,
            total * decay + jnp.sum(weights, axis=-1),
            out * decay[..., None] + _weigh(weights, _values(values, blocks, i * tile * size, step)),
        )

    empty = (
        jnp.full((rows, heads, queries), MASKED, jnp.float32),
        jnp.zeros((rows, heads, queries), jnp.float32),
        jnp.zeros((rows, heads, queries, head_dim), jnp.float32),
    )
    _, total, out = jax.lax.fori_loop(start, end, add_tile, empty)
    return out / total[..., None]


def _mosaic(q: Array, keys: Array, values: Array, step: StepShape, window: int | None, softcap: float | None) -> Array:
    """One kernel, on NVIDIA's Hopper cards."""
    return mosaic_attention(q, keys, values, step.block_tables, step.positions, window=window, softcap=softcap)


def _native(kernel: NativeKernel) -> Read:
    """A reader that calls a native kernel, and is `_gathered` on platforms that have no such kernels."""

    def read(q: Array, keys: Array, values: Array, step: StepShape, window: int | None, softcap: float | None) -> Array:
        def reference(q: Array, keys: Array, values: Array, tables: Array, positions: Array) -> tuple[Array, ...]:
            return (_gathered(q, keys, values, StepShape(positions, tables, step.block_size), window, softcap),)

        operands = (q, keys, values, step.block_tables, step.positions)
        config = kernel(tuple(jax.ShapeDtypeStruct(o.shape, o.dtype) for o in operands), window=window, softcap=softcap)
        return native_call(*operands, platform="neuron", target=TARGET, config=config, reference=reference)[0]

    return read


Read = Callable[[Array, Array, Array, StepShape, int | None, float | None], Array]
READERS: dict[str, Read] = {"tiled": _tiled, "gather": _gathered, "mosaic": _mosaic}
SLICING = ("tiled", "mosaic")
"""Where single tokens are written as slices; the others are Neuron's, whose compiler is given what it is known to take."""
