"""Attention as a Mosaic kernel, interpreted, against the gathering reference in float32: the cases of test_attention.py, in bfloat16."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.paged.mosaic_interpreter import interpreted
from xlaserve.paged import mosaic_attention as kernel
from xlaserve.paged.attention import PagedKV, StepShape
from xlaserve.paged.mosaic_attention import mosaic_attention

HEAD_DIM = 64
TOLERANCE = 6e-3
"""Of the norm of a row's result: weights are rounded to bfloat16, 8 bits, before they meet the values."""


def make_step(starts: list[int], *, length: int, block: int, heads: int, kv_heads: int, width: int, poison: float = 0.0) -> list[Any]:
    """Random pools, tables and queries; `poison` takes every place of the pool that no sequence has reached."""
    rng = np.random.default_rng(len(starts) + length)
    tables = np.zeros((len(starts), width), np.int32)
    needed = [min(width, -(-(start + length) // block)) for start in starts]
    order = list(rng.permutation(np.arange(1, sum(needed) + 3)))
    for row, count in enumerate(needed):
        tables[row, :count] = [order.pop() for _ in range(count)]
    pools = [rng.normal(0, 1, (sum(needed) + 3, kv_heads, block, HEAD_DIM)).astype(np.float32) for _ in range(2)]
    if poison:
        known = {(int(tables[row, at // block]), at % block) for row, start in enumerate(starts) for at in range(start)}
        for pool in pools:
            for number in range(len(pool)):
                for place in set(range(block)) - {place for held, place in known if held == number}:
                    pool[number, :, place] = poison
    new = [rng.normal(0, 1, (len(starts), length, count, HEAD_DIM)) for count in (heads, kv_heads, kv_heads)]
    positions = np.array(starts, np.int32)[:, None] + np.arange(length, dtype=np.int32)
    return [*(jnp.asarray(x, jnp.bfloat16) for x in (*new, *pools)), positions, tables]


def attend(step: list[Any], kind: str, window: int | None, softcap: float | None, dtype: Any) -> np.ndarray:
    block = step[3].shape[2]

    def run(q: Any, k: Any, v: Any, keys: Any, values: Any, positions: Any, tables: Any) -> Any:
        cache = PagedKV([(keys, values)], StepShape(positions, tables, block), kind)
        return cache.attend(0, q, k, v, scale=0.125, window=window, softcap=softcap)

    return np.asarray(jax.jit(run)(*(x.astype(dtype) for x in step[:5]), *step[5:]), np.float32)


def check(step: list[Any], window: int | None = None, softcap: float | None = None, tokens: int | None = None) -> np.ndarray:
    """Of each row the first `tokens` are compared, or all; the others are padding."""
    with interpreted():
        found = attend(step, "mosaic", window, softcap, jnp.bfloat16)
    wanted = attend(step, "gather", window, softcap, jnp.float32)
    assert np.isfinite(found).all()
    errors = np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert errors[:, :tokens].max() < TOLERANCE
    return found


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (1, 2.0), (40, None), (100, 2.0)])
def test_generate_steps(window: int | None, softcap: float | None) -> None:
    """Single tokens, ends of blocks and of tiles, contexts of several parts."""
    check(make_step([0, 15, 63, 64, 300], length=1, block=16, heads=4, kv_heads=2, width=24), window, softcap)


@pytest.mark.parametrize(("length", "window", "softcap"), [(16, None, None), (48, None, 2.0), (64, 33, 2.0)])
def test_context_steps(length: int, window: int | None, softcap: float | None) -> None:
    """Tiles of queries of several groups, of parts of two, and of one."""
    check(make_step([0, 64], length=length, block=16, heads=4, kv_heads=1, width=10), window, softcap)


@pytest.mark.parametrize("block", [8, 128])
def test_block_sizes(block: int) -> None:
    check(make_step([5, 140], length=1, block=block, heads=3, kv_heads=1, width=256 // block))


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")  # of the interpreter's products
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("length", [1, 32])
def test_what_others_left_behind_does_not_matter(poison: float, length: int) -> None:
    check(make_step([32, 64], length=length, block=16, heads=2, kv_heads=1, width=12, poison=poison))


@pytest.mark.parametrize(("start", "length", "window", "tokens"), [(64, 64, None, 32), (80, 128, 16, 16)])
def test_a_padded_row_may_reach_past_its_table(start: int, length: int, window: int | None, tokens: int) -> None:
    """With a window, also by so much that a whole tile of queries sees nothing in it."""
    check(make_step([0, start], length=length, block=16, heads=2, kv_heads=1, width=6), window, tokens=tokens)


def test_a_row_is_the_same_in_any_company() -> None:
    """To the last bit: alone, beside longer ones, and with a wider table."""
    step = make_step([300, 70, 9], length=1, block=16, heads=4, kv_heads=2, width=24)
    together = check(step)
    alone = [x[:1] if at in (0, 1, 2, 5, 6) else x for at, x in enumerate(step)]
    alone[6] = np.pad(alone[6], ((0, 0), (0, 8)))
    assert np.array_equal(check(alone)[0], together[0])


def test_parts_follow_from_a_row_alone() -> None:
    """As many tiles as a context has, over at most so many parts, none of them empty."""
    starts = jnp.arange(0, 9000, 37, dtype=jnp.int32)
    for window in (None, 100, 4000):
        _, each, parts = kernel.split_parts(starts, 1 << 20, window)
        first = np.maximum(np.asarray(starts) - (window or 1 << 30) + 1, 0) // kernel.TILE
        tiles = np.asarray(starts) // kernel.TILE + 1 - first
        assert (parts >= 1).all()
        assert (parts <= kernel.SPLITS).all()
        assert (each * parts >= tiles).all()
        assert (each * (parts - 1) < tiles).all()


def test_what_it_does_not_take_is_named() -> None:
    q, pool = jnp.zeros((1, 1, 4, 64)), jnp.zeros((4, 1, 16, 64))
    tables, positions = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 1), jnp.int32)
    with pytest.raises(ValueError, match="bfloat16 and float16, not in float32"):
        mosaic_attention(q, pool, pool, tables, positions, window=None, softcap=None)
    q, pool = q.astype(jnp.bfloat16), jnp.zeros((4, 1, 4, 64), jnp.bfloat16)
    with pytest.raises(ValueError, match="blocks of 8, 16"):
        mosaic_attention(q, pool, pool, tables, positions, window=None, softcap=None)
