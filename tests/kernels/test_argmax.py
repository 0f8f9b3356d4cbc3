"""The kernel that finds the most likely tokens, against the plain reductions that it stands for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlaserve.kernels.argmax import largest_index
from xlaserve.sampling.sampler import argmax

pytestmark = pytest.mark.usefixtures("native")


def both(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel finds, and the reference."""
    array = jnp.asarray(x, jnp.float32)
    return np.asarray(jax.jit(largest_index)(array)), np.asarray(jax.jit(argmax)(array))


@pytest.mark.parametrize("width", [1, 3, 15, 16, 17, 1000, 4096, 4097, 12_289, 49_152])
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_it_finds_what_the_graph_finds(rows: int, width: int) -> None:
    x = np.random.default_rng(width).normal(0, 1, (rows, width))
    found, wanted = both(x)
    assert (found == wanted).all()
    assert (found == np.argmax(x.astype(np.float32), axis=1)).all()


@pytest.mark.parametrize("at", [0, 5, 15, 16, 4095, 4096, 8191, 9000, 9999])
def test_every_place_can_be_the_largest(at: int) -> None:
    x = np.full((3, 10_000), -7.0)
    x[1, at] = 2
    x[2, at] = np.inf
    assert both(x)[0].tolist() == [0, at, at]


def test_of_equals_it_is_the_first() -> None:
    x = np.random.default_rng(0).integers(0, 3, (20, 9000)).astype(np.float32)
    found, wanted = both(x)
    assert (found == wanted).all()
    assert (found == np.argmax(x, axis=1)).all()
    zeros = np.zeros((1, 5000), np.float32)
    zeros[0, :100] = -0.0
    assert both(zeros)[0].tolist() == [0]


def test_masked_rows_and_what_is_no_number() -> None:
    x = np.full((4, 8192), -np.inf)
    x[1] = np.nan
    x[2, 4100] = np.nan
    x[3, 8191] = np.nan
    x[3, 0] = np.inf
    assert both(x)[0].tolist() == [0, 8191, 8191, 8191]


@pytest.mark.parametrize(("shape", "message"), [((5,), "x must have 2 dimensions"), ((2, 0), "rows must have numbers")])
def test_what_is_wrong_is_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"xlaserve_argmax: {message}"):
        jax.block_until_ready(largest_index(jnp.zeros(shape)))
