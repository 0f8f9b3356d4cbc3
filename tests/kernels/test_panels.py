"""Panels hold what the matrix holds, however they are filled, and give its rows back."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlaserve.kernels.panels import PANEL, PanelRows, as_matrix, matrix_shape, panel_shape, take_rows

DTYPES = ("float32", "bfloat16", "int8")


def matrix(outputs: int, inputs: int, dtype: str) -> np.ndarray:
    values = np.random.default_rng(0).integers(-127, 128, (outputs, inputs))
    return values.astype(jnp.dtype(dtype))


def empty(rows: np.ndarray) -> np.ndarray:
    panels = np.empty(panel_shape(*rows.shape, rows.dtype.itemsize), rows.dtype)
    panels.view(np.uint8).fill(0x55)
    return panels


def test_shapes() -> None:
    assert panel_shape(960, 576, 4) == (30, 576, 32, 1)
    assert panel_shape(960, 576, 2) == (30, 288, 32, 2)
    assert panel_shape(960, 576, 1) == (30, 144, 32, 4)
    assert panel_shape(49155, 576, 4) == (49155, 576)  # a vocabulary that does not divide
    assert panel_shape(96, 576, 4) == (96, 576)  # halves of a gated layer would not
    assert panel_shape(64, 6, 1) == (64, 6)
    assert matrix_shape((30, 144, 32, 4)) == (960, 576)
    assert matrix_shape((5, 6)) == (5, 6)
    assert matrix_shape((4, 5, 6)) == (4, 5, 6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_word_of_a_panel_is_some_inputs_of_one_output(dtype: str) -> None:
    rows = matrix(128, 12, dtype)
    panels = empty(rows)
    PanelRows(panels)[:] = rows
    together = panels.shape[-1]
    for output, k in itertools.product((0, 31, 32, 127), range(12)):
        assert panels[output // PANEL, k // together, output % PANEL, k % together] == rows[output, k]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ends", [(128,), (0, 5, 32, 33, 40, 128), (31, 97, 128), (64, 64, 100, 128), (3, 7, 128)])
def test_rows_may_come_in_any_portions(dtype: str, ends: tuple[int, ...]) -> None:
    rows = matrix(128, 12, dtype)
    panels = empty(rows)
    target = PanelRows(panels)
    assert (target.shape, target.dtype) == (rows.shape, rows.dtype)
    for first, last in itertools.pairwise((0, *ends)):
        target[first:last] = rows[first:last]
    assert (np.asarray(as_matrix(jnp.asarray(panels))) == rows).all()


def test_values_are_converted_and_spread() -> None:
    panels = empty(matrix(64, 4, "bfloat16"))
    target = PanelRows(panels)
    target[:] = 0
    assert not panels.any()
    target[3:40] = np.full((37, 4), 1.5, np.float64)
    expected = np.zeros((64, 4))
    expected[3:40] = 1.5
    assert (np.asarray(as_matrix(jnp.asarray(panels))) == expected).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (2, 3), (0,)])
def test_rows_are_found_again(dtype: str, shape: tuple[int, ...]) -> None:
    rows = matrix(128, 12, dtype)
    panels = empty(rows)
    PanelRows(panels)[:] = rows
    wanted = np.random.default_rng(1).integers(0, 128, shape).astype(np.int32)
    found = jax.jit(take_rows)(panels, wanted)
    assert found.shape == (*shape, 12)
    assert (np.asarray(found) == rows[wanted]).all()
