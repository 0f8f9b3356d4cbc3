"""The attention kernel against the graph that it stands for, place by place over the whole pool; and what it promises beyond that: one
answer for a token, whatever is computed beside it.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlaserve.kernels.attention import paged_attention
from xlaserve.kernels.library import Library
from xlaserve.models.config import Rope
from xlaserve.models.operations import Norm, normalize
from xlaserve.models.rotary import rotary, rotate
from xlaserve.paged.attention import PagedKV, StepShape

pytestmark = pytest.mark.usefixtures("native")

EPS = 1e-6


@dataclass(frozen=True)
class Row:
    """One sequence in a step: `start` tokens are cached, `count` are new. A row without tokens is padding."""

    start: int
    count: int


@dataclass(frozen=True)
class Shape:
    """A step's shape, and the layer's options."""

    rows: tuple[Row, ...]
    length: int = 1
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 16
    block: int = 16
    window: int | None = None
    softcap: float | None = None
    norm: bool = False
    unit_offset: bool = False
    dtype: str = "float32"

    @property
    def options(self) -> dict[str, Any]:
        return {"heads": self.heads, "scale": self.head_dim**-0.5, "window": self.window, "softcap": self.softcap}

    @property
    def real(self) -> np.ndarray:
        """bool `[S, L]`: which places of the step hold tokens."""
        return np.arange(self.length) < np.array([[row.count] for row in self.rows])


class Step(NamedTuple):
    """A step's arrays, as `paged_attention` takes them: the keys of a block lie side by side."""

    qkv: jax.Array
    cos: jax.Array
    sin: jax.Array
    keys: jax.Array
    values: jax.Array
    block_tables: jax.Array
    positions: jax.Array
    lengths: jax.Array


class Result(NamedTuple):
    """What comes out of a step."""

    out: np.ndarray
    keys: np.ndarray
    values: np.ndarray


def make_step(shape: Shape, seed: int = 0) -> Step:
    """Random tables over a pool full of noise: nothing may depend on what free blocks hold."""
    rng = np.random.default_rng(seed)
    needed = [-(-(row.start + row.count) // shape.block) if row.count else 0 for row in shape.rows]
    blocks = sum(needed) + 3
    order = list(rng.permutation(np.arange(1, blocks)))
    # The graph that is compared with wants room for whole chunks.
    tables = np.zeros((len(shape.rows), max(1, *(-(-(row.start + shape.length) // shape.block) for row in shape.rows))), np.int32)
    for i, count in enumerate(needed):
        tables[i, :count], order = order[:count], order[count:]
    dtype = jnp.dtype(shape.dtype)
    positions = np.array([[row.start] for row in shape.rows], np.int32) + np.arange(shape.length, dtype=np.int32)
    cos, sin = rotary(jnp.asarray(positions), Rope(theta=10_000.0), shape.head_dim)
    pool = (blocks, shape.kv_heads, shape.block, shape.head_dim)
    return Step(
        jnp.asarray(rng.normal(0, 1, (*positions.shape, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)), dtype),
        cos[:, :, 0],
        sin[:, :, 0],
        jnp.asarray(rng.normal(0, 1, pool), dtype).swapaxes(2, 3),
        jnp.asarray(rng.normal(0, 1, pool), dtype),
        jnp.asarray(tables),
        jnp.asarray(positions),
        jnp.asarray([row.count for row in shape.rows], jnp.int32),
    )


def norms(shape: Shape) -> tuple[jax.Array, jax.Array] | tuple[None, None]:
    if not shape.norm:
        return None, None
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(rng.normal(1, 0.3, shape.head_dim), jnp.dtype(shape.dtype)) for _ in range(2))  # type: ignore[return-value]


@functools.cache
def kernel(shape: Shape) -> Callable[[Step], tuple[jax.Array, ...]]:
    """The call with a shape's options, for the middle one of three layers; its rows do not matter."""
    q_norm, k_norm = norms(shape)

    def call(step: Step) -> tuple[jax.Array, ...]:
        others = {name: jnp.full_like(array, 7) for name, array in (("keys", step.keys), ("values", step.values))}
        stacks = {name: jnp.stack((other, getattr(step, name), other)) for name, other in others.items()}
        options = {"layer": 1, "q_norm": q_norm, "k_norm": k_norm, "eps": EPS, "unit_offset": shape.unit_offset, **shape.options}
        return paged_attention(*step._replace(**stacks), **options)

    return jax.jit(call)


def by_kernel(shape: Shape, step: Step) -> Result:
    out, keys, values = (np.asarray(array) for array in kernel(replace(shape, rows=(), length=1))(step))
    for stack in (keys, values):
        assert (stack[::2] == 7).all(), "other layers stay as they are"
    return Result(out, keys[1], values[1])


def by_graph(shape: Shape, step: Step) -> Result:
    q_norm, k_norm = norms(shape)

    @jax.jit
    def attend(step: Step) -> tuple[jax.Array, ...]:
        heads = step.qkv.reshape(*step.positions.shape, shape.heads + 2 * shape.kv_heads, shape.head_dim)
        q, k, v = jnp.split(heads, (shape.heads, shape.heads + shape.kv_heads), axis=2)
        if q_norm is not None and k_norm is not None:
            q, k = (normalize(x, Norm(weight, EPS, shape.unit_offset)) for x, weight in ((q, q_norm), (k, k_norm)))
        cos, sin = step.cos[:, :, None], step.sin[:, :, None]
        kv = PagedKV([(step.keys.swapaxes(2, 3), step.values)], StepShape(step.positions, step.block_tables, shape.block), "gather")
        options = {key: value for key, value in shape.options.items() if key != "heads"}
        out = kv.attend(0, rotate(q, cos, sin), rotate(k, cos, sin), v, **options)
        keys, values = kv.layers[0]
        return out.reshape(*step.positions.shape, -1), keys.swapaxes(2, 3), values

    return Result(*(np.asarray(array) for array in attend(step)))


def close(a: np.ndarray, b: np.ndarray, dtype: str) -> bool:
    """Within what another order of sums changes; a bfloat16 may round the other way."""
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    return np.allclose(a.astype(np.float32), b.astype(np.float32), rtol=tolerance, atol=tolerance)


GENERATION = (Row(0, 1), Row(63, 1), Row(0, 0), Row(64, 1), Row(255, 1), Row(256, 1), Row(700, 1))
CHUNKS = (Row(0, 64), Row(64, 50), Row(0, 0), Row(320, 1), Row(256, 17))

SHAPES = {
    "generation": Shape(GENERATION, head_dim=64),
    "generation, groups of 8, one key head": Shape(GENERATION, heads=8, kv_heads=1, head_dim=128, block=32),
    "generation, window inside a block": Shape(GENERATION, window=5, softcap=20.0, norm=True, unit_offset=True),
    "generation, window over segments": Shape(GENERATION, heads=4, kv_heads=4, window=300, block=8),
    "generation, bfloat16": Shape(GENERATION, head_dim=64, norm=True, dtype="bfloat16"),
    "chunks": Shape(CHUNKS, 64, head_dim=64),
    "chunks, groups of 4, wide heads": Shape(CHUNKS, 64, heads=4, kv_heads=1, head_dim=256, block=32, norm=True),
    "chunks, single heads, narrow": Shape(CHUNKS, 64, heads=3, kv_heads=3, head_dim=8, block=8),
    "chunks, heads of half vectors": Shape(CHUNKS, 64, head_dim=24, block=8, norm=True),
    "chunks, heads of 72": Shape(CHUNKS, 64, heads=8, kv_heads=1, head_dim=72, softcap=30.0),
    "chunks, window inside a chunk": Shape(CHUNKS, 64, head_dim=32, window=7),
    "chunks, window over segments": Shape(CHUNKS, 64, heads=7, kv_heads=1, window=290, softcap=5.0, norm=True, unit_offset=True),
    "chunks, bfloat16": Shape(CHUNKS, 64, head_dim=40, block=8, norm=True, dtype="bfloat16"),
    "chunks, bfloat16, unit offset": Shape(CHUNKS, 64, head_dim=64, window=100, norm=True, unit_offset=True, dtype="bfloat16"),
    "one long chunk": Shape((Row(768, 300),), 320, heads=2, kv_heads=1, head_dim=16),
}


@pytest.mark.parametrize("name", SHAPES)
def test_it_computes_what_the_graph_computes(name: str) -> None:
    shape = SHAPES[name]
    step = make_step(shape)
    found, expected = by_kernel(shape, step), by_graph(shape, step)
    assert close(found.out[shape.real], expected.out[shape.real], shape.dtype)
    assert not found.out[~shape.real].any()
    # In the caches, what real tokens have written; every other place is as it was.
    where = np.zeros(found.values.shape[:1] + found.values.shape[2:3], bool)
    positions = np.asarray(step.positions)[shape.real]
    rows = np.nonzero(shape.real)[0]
    where[np.asarray(step.block_tables)[rows, positions // shape.block], positions % shape.block] = True
    assert where.sum() == shape.real.sum()
    for axes, *arrays in (((0, 3, 1, 2), found.keys, expected.keys, step.keys), ((0, 2, 1, 3), found.values, expected.values, step.values)):
        new, graph, old = (np.asarray(array).transpose(axes) for array in arrays)
        assert (new[~where] == old[~where]).all()
        assert close(new[where], graph[where], shape.dtype)
    assert (found.values.transpose(0, 2, 1, 3)[where] == expected.values.transpose(0, 2, 1, 3)[where]).all()


@pytest.mark.parametrize(
    "name", ["generation", "generation, window over segments", "chunks", "chunks, bfloat16", "chunks, window over segments"]
)
def test_a_row_is_the_same_alone_and_in_a_batch(name: str) -> None:
    shape = SHAPES[name]
    step = make_step(shape)
    together = by_kernel(shape, step).out
    for i, row in enumerate(shape.rows):
        lone = Step(*(array if array.ndim == 4 else array[i : i + 1] for array in step))
        assert (by_kernel(replace(shape, rows=(row,)), lone).out == together[i]).all()


@pytest.mark.parametrize("name", ["chunks", "chunks, bfloat16", "chunks, window over segments"])
def test_rows_that_share_places_are_the_same(name: str) -> None:
    """Their tokens follow one another; rows without any, first, amid and last, take no place."""
    shape = replace(SHAPES[name], rows=(Row(0, 0), *SHAPES[name].rows[:1], Row(0, 0), *SHAPES[name].rows[1:], Row(0, 0)))
    step = make_step(shape)
    apart = by_kernel(shape, step)

    def shared(array: jax.Array) -> jax.Array:
        real = np.asarray(array)[shape.real]
        return jnp.asarray(np.concatenate((real, np.full((5, *real.shape[1:]), 99, real.dtype))))[None]

    qkv, cos, sin, positions = (shared(array) for array in (step.qkv, step.cos, step.sin, step.positions))
    together = by_kernel(shape, step._replace(qkv=qkv, cos=cos, sin=sin, positions=positions))
    assert (together.out[0, :-5] == apart.out[shape.real]).all()
    assert not together.out[0, -5:].any()
    assert (together.keys == apart.keys).all()
    assert (together.values == apart.values).all()


@pytest.mark.parametrize(
    "shape",
    [
        Shape((Row(230, 60),), 64, head_dim=64),
        Shape((Row(230, 60),), 64, heads=8, kv_heads=1, head_dim=24, block=8, window=100, softcap=9.0, norm=True),
        Shape((Row(500, 30),), 64, window=300, dtype="bfloat16"),
    ],
    ids=["plain", "window", "bfloat16"],
)
def test_a_token_is_the_same_in_a_chunk_and_alone(shape: Shape) -> None:
    step = make_step(shape)
    chunk = by_kernel(shape, step)
    keys, values = step.keys, step.values
    row = shape.rows[0]
    for i in range(row.count):
        lone = Step(
            step.qkv[:, i : i + 1],
            step.cos[:, i : i + 1],
            step.sin[:, i : i + 1],
            keys,
            values,
            step.block_tables,
            step.positions[:, i : i + 1],
            jnp.ones((1,), jnp.int32),
        )
        found = by_kernel(replace(shape, rows=(Row(row.start + i, 1),), length=1), lone)
        assert (found.out[:, 0] == chunk.out[:, i]).all()
        keys, values = jnp.asarray(found.keys), jnp.asarray(found.values)
    assert (np.asarray(keys) == chunk.keys).all()
    assert (np.asarray(values) == chunk.values).all()


def test_what_others_left_in_a_block_is_not_seen() -> None:
    """Places after a row's last token may hold anything, and so may blocks before its window."""
    shape = Shape((Row(300, 1), Row(37, 1)), head_dim=64, window=40)
    step = make_step(shape)
    poisoned = []
    for cache, axes in ((step.keys, (0, 3, 1, 2)), (step.values, (0, 2, 1, 3))):
        array, cached = np.full(cache.shape, np.nan, np.float32), np.asarray(cache).transpose(axes)
        places = array.transpose(axes)
        for row, table in zip(shape.rows, np.asarray(step.block_tables), strict=True):
            for at in range(max(0, row.start - 39), row.start):
                places[table[at // shape.block], at % shape.block] = cached[table[at // shape.block], at % shape.block]
        poisoned.append(jnp.asarray(array))
    found = by_kernel(shape, step._replace(keys=poisoned[0], values=poisoned[1]))
    assert (found.out == by_kernel(shape, step).out).all()


def test_donated_caches_are_updated_in_place() -> None:
    """30 layers in one graph: keys and values stay where they were, and nothing as large as those of a layer is copied."""
    shape = Shape((Row(100, 1), Row(30, 1)), heads=2, kv_heads=2, head_dim=64)
    step = make_step(shape)

    def layers(step: Step, keys: jax.Array, values: jax.Array) -> tuple[jax.Array, ...]:
        qkv = step.qkv
        for layer in range(30):
            taken = step._replace(qkv=qkv, keys=keys, values=values)
            options = {"layer": layer, "q_norm": None, "k_norm": None, "eps": EPS, "unit_offset": False, **shape.options}
            out, keys, values = paged_attention(*taken, **options)
            qkv = jnp.concatenate((out, qkv[..., out.shape[-1] :]), axis=-1)
        return qkv, keys, values

    kv = tuple(jnp.stack([array] * 30) for array in (step.keys, step.values))
    compiled = jax.jit(layers, donate_argnums=(1, 2)).lower(step, *kv).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes == 60 * step.keys.nbytes
    assert memory.temp_size_in_bytes < step.keys.nbytes
    text = compiled.as_text()
    assert text is not None
    pools = tuple(f"f32[{','.join(map(str, array.shape))}]" for array in kv)
    assert not [line for line in text.splitlines() if " copy(" in line and any(pool in line for pool in pools)]
    places = [array.unsafe_buffer_pointer() for array in kv]
    _, *after = compiled(step, *kv)
    assert [array.unsafe_buffer_pointer() for array in after] == places


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": jnp.array([[10_000]], jnp.int32)}, "positions has 10000 for tables of 7 blocks"),
        ({"lengths": jnp.array([2], jnp.int32)}, "lengths has 2 for rows of 1"),
        ({"block_tables": jnp.full((1, 7), 1_000, jnp.int32)}, "block_tables has 1000 of "),
        ({"cos": jnp.zeros((1, 1, 4), jnp.float32)}, r"cos is \[1, 1, 4\], not \[1, 1, 8\]"),
        ({"positions": jnp.zeros((1, 1), jnp.float32)}, "positions has another type"),
        ({"qkv": jnp.zeros((1, 1, 80), jnp.float16)}, "qkv is neither float32 nor bfloat16"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, jax.Array], message: str) -> None:
    shape = Shape((Row(100, 1),))
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"xlaserve_attention: {message}"):
        by_kernel(shape, make_step(shape)._replace(**change))


@pytest.mark.parametrize("name", ["avx2", "avx512", "avx512_vnni"])
def test_lesser_instruction_sets_compute_the_same(native: Library, name: str) -> None:
    known = ["avx2", "avx512", "avx512_vnni", "avx512_bf16"]
    if known.index(name) >= known.index(native.instruction_set):
        pytest.skip(f"the other tests are of {native.instruction_set}")
    some = ["generation, window over segments", "chunks, heads of half vectors", "chunks, bfloat16"]
    here = [f"{__file__}::test_it_computes_what_the_graph_computes[{case}]" for case in some]
    here.append(f"{__file__}::test_a_token_is_the_same_in_a_chunk_and_alone[window]")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *here]
    done = subprocess.run(command, env={**os.environ, "XLASERVE_CPU_ISA": name}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
