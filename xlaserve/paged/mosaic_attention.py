"""Attention over the paged KV cache as one kernel for NVIDIA's Hopper cards, in Pallas (Mosaic GPU): blocks go from the pool to shared
memory by the copy engine, products run on the tensor cores, and nothing is gathered. Time follows the keys that are read.

A program takes 64 queries that share a head of keys and walks the tiles of 64 keys that any of them sees: online softmax (Milakov &
Gimelshein, 2018; Dao, 2022). In generation, where queries are few, a sequence's tiles are split over `SPLITS` programs by its own length
alone, and their results merged in order: a row's result is the same in any company (flash decoding, Dao et al., 2023).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

ROWS = 64
"""Queries of a program: what one matrix instruction of a warpgroup takes."""

TILE = 64
"""Keys of a step of a program."""

SPLITS = 8
"""Programs that share a row's keys in generation, at most."""

FEWEST_TILES = 4
"""Tiles that one of these takes at least: with fewer, starting and merging costs more than reading."""

STAGES = 2
"""Tiles on their way at once; two programs fit on a multiprocessor then."""

HEAD_DIM, BLOCK = 64, 8
"""What divides the numbers of a head, and what a block's tokens are at least: copies are made in pieces of that form."""

DTYPES = ("bfloat16", "float16")
MASKED = -1e30
_LOG2E = math.log2(math.e)
_PIECE = 8  # rows of queries are read, and of results written, in pieces of that many


def mosaic_attention(
    q: Array, keys: Array, values: Array, tables: Array, positions: Array, *, window: int | None, softcap: float | None
) -> Array:
    """What queries attend to.

    Args:
        q: scaled queries `[S, kv_heads, groups * L, head_dim]`, of all queries that share a head those of one group after the other.
        keys, values: of one layer, `[num_blocks, kv_heads, block_size, head_dim]`, the new ones already in them.
        tables: int32 `[S, P]`, the blocks of each row's sequence.
        positions: int32 `[S, L]`, the place of each token in its sequence, one after the other.
        window: keys that a query sees, its own included; None for all earlier ones.
        softcap: bound of the scores, `cap * tanh(score / cap)`.

    Returns:
        As `q`; float32 in generation.

    Raises:
        ValueError: the kernel does not take such types or sizes; the message says which.
    """
    queries, head_dim = q.shape[2:]
    length, size = positions.shape[1], keys.shape[2]
    if str(keys.dtype) not in DTYPES or q.dtype != keys.dtype:
        raise ValueError(f"Mosaic attention computes in {' and '.join(DTYPES)}, not in {keys.dtype}.")
    if head_dim % HEAD_DIM or size % BLOCK or (size % TILE and TILE % size):
        raise ValueError(
            f"Mosaic attention takes blocks of 8, 16, 32, 64 or more tokens and heads of 64, 128, ..., not {size} and {head_dim}."
        )
    splits = SPLITS if length == 1 else 1
    tiles = -(-queries // ROWS)
    # Products are of 64 queries, and of each by itself: what the others hold may be anything where nothing is kept of them.
    kept = -(-queries // _PIECE) * _PIECE if splits > 1 and tiles == 1 else ROWS
    padded = jnp.pad(q, ((0, 0), (0, 0), (0, (tiles - 1) * ROWS + kept - queries), (0, 0)))
    call = make_kernel(q.shape, keys.shape, tables.shape, length, splits, kept, str(q.dtype), window, softcap)
    out, peaks = call(padded, keys, values, tables, positions[:, 0])
    if splits == 1:
        return out[0, :, :, :queries]
    return _merged(out[:, :, :, :queries], peaks[:, :, :, :queries], split_parts(positions[:, 0], tables.shape[1] * size, window)[2])


def _merged(out: Array, peaks: Array, parts: Array) -> Array:
    """The splits' results as one: `out` `[splits, S, kv_heads, queries, head_dim]`, with the logarithm (of 2) of what each is to weigh in
    `peaks`. Of each row the first `parts` hold something.
    """
    held = (jnp.arange(out.shape[0])[:, None] < parts)[:, :, None, None]
    peaks = jnp.where(held, peaks, MASKED)
    weights = jnp.exp2(peaks - jnp.max(peaks, axis=0))
    total = jnp.sum(weights, axis=0)
    return jnp.sum(jnp.where(held[..., None], out * weights[..., None], 0), axis=0) / total[..., None]


def split_parts(start: Array, limit: int, window: int | None) -> tuple[Array, Array, Array]:
    """Of a row with one query at `start`: its first tile, the tiles of each part, and how many parts there are."""
    first = jnp.zeros_like(start) if window is None else lax.div(jnp.maximum(start - (window - 1), 0), jnp.int32(TILE))
    count = lax.div(jnp.minimum(start + 1, limit) + (TILE - 1), jnp.int32(TILE)) - first
    each = jnp.maximum(lax.div(count + (SPLITS - 1), jnp.int32(SPLITS)), FEWEST_TILES)
    return first, each, lax.div(count + each - 1, each)


@functools.cache
def make_kernel(
    q_shape: tuple[int, ...],
    cache_shape: tuple[int, ...],
    table_shape: tuple[int, ...],
    length: int,
    splits: int,
    kept: int,
    dtype: str,
    window: int | None,
    softcap: float | None,
) -> Any:
    """The kernel for these shapes and types, made once for all layers; it reads and writes `kept` rows of a program's queries."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import mosaic_gpu as plgpu

    rows, heads, queries, head_dim = q_shape
    size, width = cache_shape[2], table_shape[1]
    query_tiles, limit = -(-queries // ROWS), table_shape[1] * size
    copies = max(1, TILE // size)  # of a tile
    piece = min(size, TILE)
    one = jnp.int32

    def body(q_ref: Any, k_ref: Any, v_ref: Any, table: Any, starts: Any, out_ref: Any, peak_ref: Any, **scratch: Any) -> None:
        q_mem, k_mem, v_mem, out_mem, peak_mem = (scratch[name] for name in ("q", "k", "v", "out", "peak"))
        k_ready, v_ready, q_ready = (scratch[name] for name in ("k_ready", "v_ready", "q_ready"))
        split, tile, pair = (lax.axis_index(name) for name in ("split", "tile", "pair"))
        row, head = lax.div(pair, one(heads)), lax.rem(pair, one(heads))
        start = starts[row]
        # Places of this program's queries: one after the other where a tile is within a group, else any of the row's.
        if length % ROWS == 0:
            lowest = start + lax.rem(tile * ROWS, one(length))
            highest = lowest + (ROWS - 1)
        else:
            lowest, highest = start, start + (length - 1)
        end_key = jnp.minimum(highest + 1, limit)
        first = one(0) if window is None else lax.div(jnp.maximum(lowest - (window - 1), 0), one(TILE))
        last = lax.div(end_key + (TILE - 1), one(TILE))
        if splits == 1 and window is not None:
            # Padding may stand a whole window past the table: it reads the last tile, as what is not written may be no number.
            first = jnp.minimum(first, last - 1)
        if splits > 1:
            each = jnp.maximum(lax.div(last - first + (splits - 1), one(splits)), FEWEST_TILES)
            first = first + split * each
            last = jnp.minimum(first + each, last)

        def fetch(step: Array) -> None:
            slot = lax.rem(step - first, one(STAGES))
            for at in range(copies):
                block = jnp.minimum(lax.div(step * TILE + at * piece, one(size)), width - 1)
                number = table[row, block]
                inside = pl.ds(lax.rem(step * TILE, one(size)), TILE) if size > TILE else pl.ds(0, piece)
                place = pl.ds(at * piece, piece)
                plgpu.copy_gmem_to_smem(k_ref.at[number, head, inside], k_mem.at[slot, place], k_ready.at[slot])
                plgpu.copy_gmem_to_smem(v_ref.at[number, head, inside], v_mem.at[slot, place], v_ready.at[slot])

        def spread(column: Array, shape: tuple[int, int]) -> Array:
            return lax.broadcast_in_dim(column, shape, [0])

        @pl.when(first < last)
        def _() -> None:
            plgpu.copy_gmem_to_smem(q_ref.at[row, head, pl.ds(tile * ROWS, kept)], q_mem.at[pl.ds(0, kept)], q_ready)
            for ahead in range(STAGES):
                pl.when(first + ahead < last)(functools.partial(fetch, first + ahead))
            plgpu.barrier_wait(q_ready)

            def add_tile(step: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                out, peak, total = carry
                slot = lax.rem(step - first, one(STAGES))
                plgpu.barrier_wait(k_ready.at[slot])

                def multiply(scores: Any) -> Array:
                    plgpu.wgmma(scores, q_mem, k_mem.at[slot].transpose((1, 0)))
                    return scores[...]

                scores = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((ROWS, TILE), jnp.float32))
                if softcap is not None:  # tanh(x) = 1 - 2 / (exp(2 x) + 1)
                    scores = softcap - (2 * softcap) / (jnp.exp2(scores * (2 * _LOG2E / softcap)) + 1)
                iota = functools.partial(plgpu.broadcasted_iota, jnp.int32, (ROWS, TILE), layout=plgpu.Layout.WGMMA)
                at = iota(0)
                at = lowest + at if length % ROWS == 0 else start + (lax.rem(tile * ROWS + at, one(length)) if length > 1 else 0 * at)
                key = step * TILE + iota(1)
                seen = key <= at
                if window is not None:
                    seen = seen & (key > at - window)
                scores = jnp.where(seen, scores * _LOG2E, MASKED)
                higher = jnp.maximum(peak, scores.max(axis=1))
                decay = jnp.exp2(peak - higher)
                weights = jnp.exp2(scores - spread(higher, (ROWS, TILE)))
                total = total * decay + weights.sum(axis=1)
                plgpu.barrier_wait(v_ready.at[slot])

                # What lies past the last token may be no number at all, and 0 * nan is nan.
                @pl.when(step * TILE + TILE > end_key)
                def _() -> None:
                    held = plgpu.layout_cast(v_mem[slot], plgpu.Layout.WGMMA)
                    places = step * TILE + plgpu.broadcasted_iota(jnp.int32, (TILE, head_dim), 0, layout=plgpu.Layout.WGMMA)
                    v_mem[slot] = jnp.where(places < end_key, held, jnp.zeros_like(held))
                    plgpu.commit_smem()

                def weigh(sums: Any) -> Array:
                    plgpu.wgmma(sums, weights.astype(dtype), v_mem.at[slot])
                    return sums[...]

                out = out * spread(decay, (ROWS, head_dim)) + pl.run_scoped(weigh, plgpu.WGMMAAccumulatorRef((ROWS, head_dim), jnp.float32))
                pl.when(step + STAGES < last)(functools.partial(fetch, step + STAGES))
                return out, higher, total

            column = plgpu.Layout.WGMMA.reduce(1)
            empty = (
                plgpu.layout_cast(jnp.zeros((ROWS, head_dim), jnp.float32), plgpu.Layout.WGMMA),
                plgpu.layout_cast(jnp.full((ROWS,), MASKED, jnp.float32), column),
                plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), column),
            )
            out, peak, total = lax.fori_loop(first, last, add_tile, empty)
            out = out / spread(total, (ROWS, head_dim))
            out_mem[...] = out.astype(out_mem.dtype)
            if splits > 1:
                peak_mem[...] = peak + jnp.log2(total)
            plgpu.commit_smem()
            there = pl.ds(tile * ROWS, kept)
            plgpu.copy_smem_to_gmem(out_mem.at[pl.ds(0, kept)], out_ref.at[split, row, head, there])
            if splits > 1:
                plgpu.copy_smem_to_gmem(peak_mem, peak_ref.at[split, row, head])
            plgpu.wait_smem_to_gmem(0)

    def transforms(itemsize: int) -> tuple[Any, ...]:
        return plgpu.TilingTransform((8, 128 // itemsize)), plgpu.SwizzleTransform(128)

    short, result = jnp.dtype(dtype), jnp.dtype(jnp.float32 if splits > 1 else dtype)
    scratch = {
        "q": plgpu.SMEM((ROWS, head_dim), short, transforms=transforms(2)),
        "k": plgpu.SMEM((STAGES, TILE, head_dim), short, transforms=transforms(2)),
        "v": plgpu.SMEM((STAGES, TILE, head_dim), short, transforms=transforms(2)),
        "out": plgpu.SMEM((ROWS, head_dim), result, transforms=transforms(result.itemsize)),
        "peak": plgpu.SMEM((ROWS,), jnp.float32),
        "k_ready": plgpu.Barrier(num_arrivals=copies, num_barriers=STAGES),
        "v_ready": plgpu.Barrier(num_arrivals=copies, num_barriers=STAGES),
        "q_ready": plgpu.Barrier(),
    }
    written = (query_tiles - 1) * ROWS + kept
    return plgpu.kernel(
        body,
        out_type=(
            jax.ShapeDtypeStruct((splits, rows, heads, written, head_dim), result),
            jax.ShapeDtypeStruct((splits, rows, heads, ROWS), jnp.float32),
        ),
        scratch_types=scratch,
        grid=(splits, query_tiles, rows * heads),
        grid_names=("split", "tile", "pair"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
