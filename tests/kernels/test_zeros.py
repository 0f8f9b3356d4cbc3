"""Zeros from the kernels: zeros wherever their memory was before, each array on its own, in huge pages where there are some."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_host_memory import HUGE, huge_bytes, needs_huge_pages
from xlaserve import LLM
from xlaserve.buckets.graphs import lower
from xlaserve.buckets.ladder import BLANK
from xlaserve.kernels.zeros import ZEROS, zeros

pytestmark = pytest.mark.usefixtures("native")

SHAPES = [
    jax.ShapeDtypeStruct(shape, dtype)
    for shape in ((3,), (), (0, 4), (7, 129, 5), (HUGE // 2 + 3,), (HUGE + 1,))
    for dtype in (jnp.float32, jnp.bfloat16, jnp.int8)
]


def test_they_are_zeros_wherever_their_memory_was_before() -> None:
    made = jax.jit(lambda: zeros(SHAPES)).lower().compile()
    filled = jax.jit(lambda arrays: [array + 7 for array in arrays], donate_argnums=0)
    arrays = filled(made())
    assert all((np.asarray(array) == 7).all() for array in arrays)
    del arrays
    for array, shape in zip(made(), SHAPES, strict=True):
        assert (array.shape, array.dtype) == (shape.shape, shape.dtype)
        assert not np.asarray(array).any()


def test_arrays_that_are_alike_are_not_copies_of_one() -> None:
    made = jax.jit(lambda: zeros([jax.ShapeDtypeStruct((1 << 16,), jnp.float32)] * 8)).lower().compile()
    memory = made.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes == 0
    assert len({array.unsafe_buffer_pointer() for array in made()}) == 8
    text = made.as_text()
    assert text is not None
    assert " copy(" not in text


def test_they_lie_in_huge_pages_where_there_are_some() -> None:
    needs_huge_pages()
    [array] = jax.jit(lambda: zeros([jax.ShapeDtypeStruct((64 * HUGE,), jnp.int8)]))()
    found = huge_bytes(array.unsafe_buffer_pointer() + HUGE)
    if not found:
        pytest.skip("this system gives out no huge pages, although it says that it has some: there are none left, or it only says so")
    assert found >= 56 * HUGE, "63 or 64 are whole, and memory may be short of some"


def test_the_cache_of_an_engine_with_kernels_is_made_of_them(tiny_llm: LLM) -> None:
    spec, devices = tiny_llm._engine.plan.spec, tiny_llm._engine.plan.devices
    assert ZEROS in lower(replace(spec, kernels="cpu-1"), BLANK, devices).as_text()
    assert ZEROS not in lower(replace(spec, kernels="none"), BLANK, devices).as_text()
