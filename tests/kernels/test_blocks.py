"""KV blocks copied by the kernel: as the reference copies them, in place, and nothing outside the cache is touched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlaserve import LLM
from xlaserve.buckets.graphs import lower
from xlaserve.buckets.ladder import COPY
from xlaserve.kernels.blocks import COPY_BLOCKS, copy_in_place
from xlaserve.paged import attention

pytestmark = pytest.mark.usefixtures("native")

SHAPES = [((2, 50, 3, 16, 8), jnp.float32), ((1, 50, 1, 4, 24), jnp.bfloat16), ((3, 50, 2, 8, 8), jnp.int8)]


def caches() -> tuple[jax.Array, ...]:
    """A cache of each type, in which every block is another."""
    rng = np.random.default_rng(3)
    return tuple(jnp.asarray(rng.integers(-100, 100, shape), dtype) for shape, dtype in SHAPES)


def blocks(*numbers: int) -> jax.Array:
    """Numbers of blocks."""
    return jnp.asarray(numbers, jnp.int32)


def test_blocks_are_copied_as_the_reference_copies_them() -> None:
    source, target = blocks(7, 7, 49, 1, 0, 0), blocks(3, 4, 30, 2, 0, 0)
    copied = jax.jit(copy_in_place)(caches(), source, target)
    for found, before in zip(copied, caches(), strict=True):
        wanted = attention.copy_blocks(tuple(before), source, target)
        np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(jnp.stack(wanted), np.float32))


def test_nothing_to_copy_is_nothing_done() -> None:
    empty = (jnp.zeros((2, 0, 3, 16, 8)),)
    assert jax.jit(copy_in_place)(empty, blocks(), blocks())[0].shape == (2, 0, 3, 16, 8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_donated_caches_stay_where_they_are(dtype: str) -> None:
    """Whatever the type, the graph needs no memory but for its table of results."""
    kv = tuple(jax.ShapeDtypeStruct((30, 512, 3, 16, 64), dtype) for _ in range(2))
    index = jax.ShapeDtypeStruct((16,), jnp.int32)
    memory = jax.jit(copy_in_place, donate_argnums=0).lower(kv, index, index).compile().memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes == 60 * 512 * 3 * 16 * 64 * jnp.dtype(dtype).itemsize
    assert memory.temp_size_in_bytes < 16384


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (blocks(1, 2), blocks(3), "source and target must be as many"),
        (blocks(50), blocks(3), "there is no block 50 of 50"),
        (blocks(3), blocks(-1), "there is no block -1 of 50"),
    ],
)
def test_what_is_outside_is_an_error(source: Any, target: Any, message: str) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(jax.jit(copy_in_place)(caches(), source, target))


def test_the_graph_of_an_engine_with_kernels_is_made_of_it(tiny_llm: LLM) -> None:
    spec, devices = tiny_llm._engine.plan.spec, tiny_llm._engine.plan.devices
    assert COPY_BLOCKS in lower(replace(spec, kernels="cpu-1"), COPY, devices).as_text()
    assert COPY_BLOCKS not in lower(replace(spec, kernels="none"), COPY, devices).as_text()
