"""Paged attention of one layer as one call of the CPU kernels: all that stands between the fused qkv projection and the output projection.

It is what `xlaserve.models.layers.Attention` computes there with `xlaserve.paged.attention.PagedKV`, in float32 inside. What a query
gets depends on its sequence alone: not on the batch, nor on the number of threads, nor on whether its token came in a chunk.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from xlaserve.kernels.packs import Packed, where

ATTENTION = "xlaserve_attention"
"""Name of the custom call."""


def paged_attention(
    qkv: Array,
    cos: Array,
    sin: Array,
    keys: Array,
    values: Array,
    block_tables: Array,
    positions: Array,
    lengths: Array,
    *,
    layer: int,
    q_norm: Array | Packed | None,
    k_norm: Array | Packed | None,
    heads: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    eps: float,
    unit_offset: bool,
) -> tuple[Array, Array, Array]:
    """Write the rows' new keys and values into their blocks, then attend. Donated caches are updated in place.

    Args:
        qkv: float32 or bfloat16 `[S, L, (heads + 2 * kv_heads) * head_dim]`, the heads of queries, then of keys, then of values. Or
            `[1, L, ...]`, likewise `cos`, `sin`, `positions` and the result: then the rows share L places, their tokens one row's
            after another's.
        cos, sin: float32 `[S, L, head_dim / 2]`, the rotation at each token's position.
        keys: `[layers, num_blocks, kv_heads, head_dim, block_size]` of `qkv`'s type; head_dim is a multiple of 8. Keys of a block lie side
            by side, as scores are computed.
        values: `[layers, num_blocks, kv_heads, block_size, head_dim]` of the same type.
        block_tables: int32 `[S, P]`, the blocks of each row's sequence.
        positions: int32 `[S, L]`; those of a row's real tokens follow each other.
        lengths: int32 `[S]`, how many of a row's tokens are real. The others are not written, and what they attend to is 0.
        layer: whose keys and values they are; those of others stay as they are.
        q_norm, k_norm: `[head_dim]`, weights of the RMS norm of each head; both or none. They may lie in packs.
        heads: query heads.
        scale: factor of the scores.
        window: keys that a query sees at most, its own included.
        softcap: scores become `tanh(score / softcap) * softcap`.
        eps, unit_offset: of the norms.

    Returns: what the tokens attend to, `[S, L, heads * head_dim]`; keys; values.
    """
    none = jnp.zeros((0,), qkv.dtype)
    norms = [(none, 0) if norm is None else where(norm) for norm in (q_norm, k_norm)]
    call = jax.ffi.ffi_call(
        ATTENTION,
        (
            jax.ShapeDtypeStruct((*qkv.shape[:2], heads * values.shape[-1]), qkv.dtype),
            jax.ShapeDtypeStruct(keys.shape, keys.dtype),
            jax.ShapeDtypeStruct(values.shape, values.dtype),
        ),
        input_output_aliases={3: 1, 4: 2},
    )
    out, keys, values = call(
        qkv,
        cos,
        sin,
        keys,
        values,
        block_tables,
        positions,
        lengths,
        *(array for array, _ in norms),
        layer=np.int64(layer),
        norms_at=np.array([at for _, at in norms], np.int64),
        heads=np.int64(heads),
        scale=np.float32(scale),
        window=np.int64(window or 0),
        softcap=np.float32(softcap or 0),
        eps=np.float32(eps),
        unit_offset=unit_offset,
    )
    return out, keys, values
