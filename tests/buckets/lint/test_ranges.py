"""The interval of an index holds every index that the function really computes, in both forms, and is as narrow as it should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.buckets.lint.lowered import facts, lower
from xlaserve.buckets.lint.ranges import between

LOW, HIGH = np.array([-3, 0, 5, 2]), np.array([9, 7, 5, 1000])
"""What the four columns of the argument hold."""

FUNCTIONS: dict[str, tuple[Callable[[Any], Any], tuple[int, int]]] = {
    "a column": (lambda i: i[:, 1], (0, 7)),
    "columns": (lambda i: i[:, 1:3].reshape(-1), (0, 7)),
    "add": (lambda i: i[:, 0] + i[:, 1], (-3, 16)),
    "subtract": (lambda i: i[:, 1] - i[:, 2], (-5, 2)),
    "multiply": (lambda i: i[:, 0] * i[:, 1], (-21, 63)),
    "divide": (lambda i: jax.lax.div(i[:, 3], jnp.int32(16)), (0, 62)),
    "divide by a column": (lambda i: jax.lax.div(i[:, 3], i[:, 2]), (0, 200)),
    "remainder": (lambda i: jax.lax.rem(i[:, 3], jnp.int32(16)), (0, 15)),
    "negative remainder": (lambda i: jax.lax.rem(i[:, 0], jnp.int32(2)), (-1, 1)),
    "and": (lambda i: i[:, 3] & 127, (0, 127)),
    "shift": (lambda i: i[:, 3] >> 3, (0, 125)),
    "negative shift": (lambda i: i[:, 0] >> 1, (-2, 4)),
    "clip": (lambda i: jnp.clip(i[:, 0], 0, 4), (0, 4)),
    "minimum": (lambda i: jnp.minimum(i[:, 3], 6), (2, 6)),
    "where": (lambda i: jnp.where(i[:, 0] < 3, i[:, 1], 20), (0, 20)),
    "a wrap that cannot happen": (lambda i: jnp.where(i[:, 1] < 0, i[:, 1] + 99, i[:, 1]), (0, 7)),
    "a mask that always holds": (lambda i: jnp.where((i[:, 2] == 5) & ~(i[:, 1] > 7), i[:, 1], 99), (0, 7)),
    "negate": (lambda i: -i[:, 0], (-9, 3)),
    "sign": (lambda i: jnp.sign(i[:, 0]), (-1, 1)),
    "iota": (lambda i: i[:, 1] + jnp.arange(6, dtype=jnp.int32), (0, 12)),
    "columns put together": (lambda i: jnp.stack((i[:, 1], i[:, 2]), axis=1)[:, 0], (0, 7)),
    "maximum of columns": (lambda i: jnp.max(i[:, 1:3], axis=1), (0, 7)),
    "sum of columns": (lambda i: jnp.sum(i[:, 1:3], axis=1), (0, 14)),
    "a table": (lambda i: jnp.array([4, 1, 3, 2, 2, 2, 2, 7], jnp.int32).at[i[:, 1]].get(mode="promise_in_bounds"), (1, 7)),
    "floats": (lambda i: (i[:, 1].astype(jnp.float32) * 2).astype(jnp.int32), (-(2**31), 2**31 - 1)),
    "what wraps around": (lambda i: i[:, 3] * 3_000_000, (-(2**31), 2**31 - 1)),
    "a loop": (lambda i: jax.lax.fori_loop(0, 3, lambda _, y: y + 1, i[:, 1]), (-(2**31), 2**31 - 1)),
    "both branches": (lambda i: jax.lax.cond(i[0, 0] > 0, lambda: i[:, 1], lambda: i[:, 2] + 4), (0, 9)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_interval(name: str) -> None:
    function, (low, high) = FUNCTIONS[name]

    def index(i: Any, x: Any) -> Any:
        return x.at[function(i)].set(1.0, mode="promise_in_bounds", wrap_negative_indices=False)

    known = facts({"i": between(LOW, HIGH)})
    for subject in lower(index, jax.ShapeDtypeStruct((6, 4), jnp.int32), jax.ShapeDtypeStruct((64,), jnp.float32), known=known):
        found = next(found for op, found in subject.indices.items() if op.name == "scatter")
        assert (int(found.flat.low), int(found.flat.high)) == (low, high), subject.module.form
    rng = np.random.default_rng(0)
    real = np.asarray(jax.jit(function)(rng.integers(LOW, HIGH + 1, (6, 4)).astype(np.int32)))
    assert low <= real.min()
    assert real.max() <= high
