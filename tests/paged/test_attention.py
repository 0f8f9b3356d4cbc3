"""Paged attention, tiled and gathered, against plain NumPy; and what a step writes, place by place over the whole pool."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlaserve.paged import tile
from xlaserve.paged.attention import PagedKV, StepShape

HEAD_DIM = 8


@dataclass(frozen=True)
class Row:
    """One sequence in a step: `start` tokens are cached, `count` are new. A row without tokens is padding."""

    start: int
    count: int


@dataclass
class Step:
    """A step's arrays, and the whole history of each row in the order of its tokens."""

    rows: list[Row]
    length: int
    tables: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    history: list[tuple[np.ndarray, np.ndarray]]
    block: int

    @property
    def positions(self) -> np.ndarray:
        return np.array([[row.start] for row in self.rows], np.int32) + np.arange(self.length, dtype=np.int32)


def make_step(rows: list[Row], *, length: int, block: int, heads: int, kv_heads: int, seed: int = 0, width: int | None = None) -> Step:
    """Random tables over a pool full of noise: nothing may depend on what free blocks hold."""
    rng = np.random.default_rng(seed)
    needed = [-(-(row.start + row.count) // block) for row in rows]
    width = width or max(1, *needed)
    num_blocks = sum(needed) + 4
    order = list(rng.permutation(np.arange(1, num_blocks)))
    tables = np.zeros((len(rows), width), np.int32)
    keys, values = (rng.normal(0, 3, (num_blocks, kv_heads, block, HEAD_DIM)).astype(np.float32) for _ in range(2))
    q = rng.normal(0, 1, (len(rows), length, heads, HEAD_DIM)).astype(np.float32)
    k, v = (rng.normal(0, 1, (len(rows), length, kv_heads, HEAD_DIM)).astype(np.float32) for _ in range(2))
    history = []
    for i, row in enumerate(rows):
        tables[i, : needed[i]] = [order.pop() for _ in range(needed[i])]
        past = [rng.normal(0, 1, (row.start, kv_heads, HEAD_DIM)).astype(np.float32) for _ in range(2)]
        for cache, tokens in zip((keys, values), past, strict=True):
            for at, token in enumerate(tokens):
                cache[tables[i, at // block], :, at % block] = token
        history.append((np.concatenate((past[0], k[i, : row.count])), np.concatenate((past[1], v[i, : row.count]))))
    return Step(rows, length, tables, keys, values, q, k, v, history, block)


@functools.cache
def attend(kind: str, block: int, window: int | None, softcap: float | None, scale: float) -> Any:
    def step(q: Any, k: Any, v: Any, keys: Any, values: Any, positions: Any, tables: Any) -> Any:
        cache = PagedKV([(keys, values)], StepShape(positions, tables, block), kind)  # type: ignore[arg-type]
        return cache.attend(0, q, k, v, scale=scale, window=window, softcap=softcap), *cache.layers[0]

    return jax.jit(step)


def run(step: Step, kind: str, *, window: int | None = None, softcap: float | None = None, scale: float = 0.4) -> list[np.ndarray]:
    results = attend(kind, step.block, window, softcap, scale)(step.q, step.k, step.v, step.keys, step.values, step.positions, step.tables)
    return [np.asarray(x) for x in results]


def plain(step: Step, row: int, token: int, *, window: int | None, softcap: float | None, scale: float = 0.4) -> np.ndarray:
    """Attention of one new token over its own history, float64 `[heads, HEAD_DIM]`."""
    at = step.rows[row].start + token
    first = 0 if window is None else max(0, at - window + 1)
    keys, values = (x[first : at + 1].astype(np.float64) for x in step.history[row])
    heads, groups = step.q.shape[2], step.q.shape[2] // keys.shape[1]
    out = np.empty((heads, HEAD_DIM))
    for head in range(heads):
        scores = keys[:, head // groups] @ step.q[row, token, head].astype(np.float64) * scale
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        out[head] = weights / weights.sum() @ values[:, head // groups]
    return out


def check(step: Step, *, window: int | None = None, softcap: float | None = None) -> None:
    for kind in ("tiled", "gather"):
        out, _, _ = run(step, kind, window=window, softcap=softcap)
        assert np.isfinite(out).all(), "padding too must stay finite"
        for i, row in enumerate(step.rows):
            for token in range(row.count):
                wanted = plain(step, i, token, window=window, softcap=softcap)
                np.testing.assert_allclose(out[i, token], wanted, rtol=2e-4, atol=2e-5, err_msg=f"{kind} row {i} token {token}")


CONTEXT = [Row(0, 37), Row(32, 48), Row(64, 1), Row(16, 16), Row(0, 0)]
"""Fresh and continued chunks, whole and broken last blocks, a single token, padding."""
GENERATE = [Row(0, 1), Row(15, 1), Row(16, 1), Row(90, 1), Row(0, 0), Row(47, 1)]


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (None, 2.0), (1, None), (16, 2.0), (33, None)])
def test_context_steps(window: int | None, softcap: float | None) -> None:
    check(make_step(CONTEXT, length=48, block=16, heads=4, kv_heads=2), window=window, softcap=softcap)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (1, 2.0), (7, None), (40, 2.0)])
def test_generate_steps(window: int | None, softcap: float | None) -> None:
    check(make_step(GENERATE, length=1, block=16, heads=4, kv_heads=2), window=window, softcap=softcap)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_group_sizes(heads: int, kv_heads: int) -> None:
    check(make_step(CONTEXT, length=48, block=16, heads=heads, kv_heads=kv_heads))
    check(make_step(GENERATE, length=1, block=16, heads=heads, kv_heads=kv_heads))


@pytest.mark.parametrize("block", [1, 128])
def test_block_sizes(block: int) -> None:
    check(make_step([Row(0, 5), Row(4 * block, block), Row(2 * block, 1)], length=max(6, block), block=block, heads=4, kv_heads=2))
    check(make_step([Row(3, 1), Row(2 * block, 1), Row(0, 1)], length=1, block=block, heads=4, kv_heads=2))


@pytest.mark.parametrize("seed", range(2))
def test_random_steps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [Row(16 * int(rng.integers(0, 8)), int(rng.integers(1, 33))) for _ in range(6)]
    check(make_step(rows, length=32, block=16, heads=4, kv_heads=2, seed=seed, width=12), window=[None, 20][seed % 2])
    rows = [Row(int(rng.integers(0, 150)), 1) for _ in range(6)]
    check(make_step(rows, length=1, block=16, heads=4, kv_heads=2, seed=seed, width=12), window=[20, None][seed % 2])


@pytest.mark.parametrize(("tile_tokens", "window"), [(16, None), (64, 24), (160, 24)])
def test_tiles_of_any_size_give_the_same(tile_tokens: int, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tiles, a table that no tile divides, windows that begin in the middle of one."""
    monkeypatch.setattr(tile, "TILE_TOKENS", tile_tokens)
    attend.cache_clear()
    try:
        for length, rows in ((16, [Row(112, 16), Row(96, 3)]), (1, [Row(118, 1), Row(5, 1)])):
            step = make_step(rows, length=length, block=16, heads=4, kv_heads=2, width=11)
            check(step, window=window)
    finally:
        attend.cache_clear()


def test_wide_tables_cost_nothing_but_their_numbers() -> None:
    """A row's result does not depend on how much wider the table is than what it uses."""
    narrow, wide = (make_step([Row(16, 20)], length=32, block=16, heads=4, kv_heads=2, width=width) for width in (3, 40))
    for kind in ("tiled", "gather"):
        np.testing.assert_allclose(run(narrow, kind)[0][:, :20], run(wide, kind)[0][:, :20], rtol=1e-5, atol=1e-6)


def test_a_row_does_not_feel_the_others() -> None:
    """The same sequence gives the same numbers, bit for bit, whatever stands in the rows beside it."""
    step = make_step([Row(32, 20), Row(0, 7), Row(48, 32)], length=32, block=16, heads=4, kv_heads=2)
    for kind in ("tiled", "gather"):
        out = run(step, kind)[0][0, :20]
        other = Step(**{**vars(step), "q": step.q.copy(), "k": step.k.copy(), "v": step.v.copy()})
        other.q[1:], other.k[1:], other.v[1:] = 5.0, -3.0, 100.0
        assert np.array_equal(run(other, kind)[0][0, :20], out)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_others_left_behind_does_not_matter(poison: float) -> None:
    """Free blocks, the null block and the rest of a last block may hold anything, even what is no number."""
    for length, rows in ((48, CONTEXT), (1, GENERATE)):
        step = make_step(rows, length=length, block=16, heads=4, kv_heads=2)
        own = {(int(step.tables[i, at // 16]), at % 16) for i, row in enumerate(rows) for at in range(row.start)}
        for block in range(len(step.keys)):
            for place in set(range(16)) - {place for held, place in own if held == block}:
                step.keys[block, :, place] = step.values[block, :, place] = poison
        check(step)


def allowed_places(step: Step) -> dict[tuple[int, int], tuple[int, int]]:
    """(block, place) -> (row, token) of every place that holds a new token after the step."""
    return {
        (int(step.tables[i, (row.start + t) // step.block]), (row.start + t) % step.block): (i, t)
        for i, row in enumerate(step.rows)
        for t in range(row.count)
    }


@pytest.mark.parametrize("rows", [CONTEXT, [Row(0, 0), Row(0, 0)], [Row(80, 40), Row(0, 64)]], ids=["mixed", "padding", "full"])
def test_context_steps_write_their_tokens_and_nothing_that_is_read(rows: list[Row]) -> None:
    """New tokens are in their places; besides them a step touches only the null block and the rest of each row's own last block."""
    step = make_step(rows, length=64, block=16, heads=4, kv_heads=2, width=8)
    written = allowed_places(step)
    tails = {
        (int(step.tables[i, (row.start + row.count - 1) // 16]), place)
        for i, row in enumerate(rows)
        if row.count
        for place in range((row.start + row.count - 1) % 16 + 1, 16)
    }
    for kind in ("tiled", "gather"):
        for before, after, new in zip((step.keys, step.values), run(step, kind)[1:], (step.k, step.v), strict=True):
            for block in range(1, len(before)):
                for place in range(16):
                    if (at := written.get((block, place))) is not None:
                        assert np.array_equal(after[block, :, place], new[at]), (block, place)
                    elif (block, place) not in tails:
                        assert np.array_equal(after[block, :, place], before[block, :, place]), (block, place)


def test_generate_steps_write_one_place_per_row() -> None:
    step = make_step(GENERATE, length=1, block=16, heads=4, kv_heads=2, width=9)
    written = allowed_places(step)
    for kind in ("tiled", "gather"):
        for before, after, new in zip((step.keys, step.values), run(step, kind)[1:], (step.k, step.v), strict=True):
            wanted = before.copy()
            for (block, place), at in written.items():
                wanted[block, :, place] = new[at]
            assert np.array_equal(after[1:], wanted[1:])
            assert np.array_equal(after[0, :, 1:], before[0, :, 1:]), "padding has one token, at the null block's first place"


def test_chunks_that_reach_past_the_table_go_to_the_null_block() -> None:
    """The longest bucket on the last chunk of a sequence of the full length."""
    step = make_step([Row(48, 10)], length=64, block=16, heads=4, kv_heads=2, width=4)
    check(step)
    for kind in ("tiled", "gather"):
        after = run(step, kind)[1]
        others = [b for b in range(1, len(after)) if b != step.tables[0, 3]]
        assert np.array_equal(after[others], step.keys[others])


def test_chunk_after_chunk_and_token_after_token_equal_one_piece() -> None:
    whole = make_step([Row(0, 48)], length=48, block=16, heads=4, kv_heads=2)
    wanted = run(whole, "gather")[0][0]
    for kind in ("tiled", "gather"):
        keys, values, got = whole.keys, whole.values, []
        for start, length in ((0, 16), (16, 16), *((at, 1) for at in range(32, 48))):
            at = slice(start, start + length)
            piece = Step([Row(start, length)], length, whole.tables, keys, values, whole.q[:, at], whole.k[:, at], whole.v[:, at], [], 16)
            out, keys, values = run(piece, kind)
            got.append(out[0])
        np.testing.assert_allclose(np.concatenate(got), wanted, rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_its_type_and_softmax_in_float32() -> None:
    step = make_step(CONTEXT, length=48, block=16, heads=4, kv_heads=2)
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (step.q, step.k, step.v, step.keys, step.values)]
    for kind in ("tiled", "gather"):
        out, keys, _ = attend(kind, 16, None, None, 0.4)(*arrays, step.positions, step.tables)
        assert out.dtype == keys.dtype == jnp.bfloat16
        for i, row in enumerate(step.rows):
            for token in range(row.count):
                np.testing.assert_allclose(
                    np.asarray(out[i, token], np.float32), plain(step, i, token, window=None, softcap=None), atol=0.06
                )
