"""How the CPU kernels like the weights of a linear layer: in panels of 32 outputs, `[outputs / 32, inputs / g, 32, g]`, where g inputs have
4 bytes.

A step of a product reads what follows in memory, and its lanes are outputs. A matrix whose numbers do not divide into panels stays as
checkpoints have it, `[outputs, inputs]`, and is slower to multiply by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jax import Array

PANEL = 32
"""Outputs of a panel; cpu/panels.h has the same number."""

_WORD = 4
"""Bytes that are multiplied at once."""


def panel_shape(outputs: int, inputs: int, itemsize: int) -> tuple[int, ...]:
    """The shape of a weight.

    Args:
        outputs: rows as checkpoints have them.
        inputs: columns as checkpoints have them.
        itemsize: bytes of a number.

    Returns: that of panels, or `(outputs, inputs)` where there are none. Each half of a gated layer must have whole panels too.
    """
    together = _WORD // itemsize
    if outputs % (2 * PANEL) or inputs % together:
        return outputs, inputs
    return outputs // PANEL, inputs // together, PANEL, together


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Outputs and inputs of a weight in panels; any other shape is returned as it is."""
    if len(shape) != 4:
        return shape
    panels, words, outputs, together = shape
    return panels * outputs, words * together


def as_matrix(weight: Array) -> Array:
    """`[outputs, inputs]` of a weight that may be in panels."""
    return weight if weight.ndim != 4 else weight.transpose(0, 2, 1, 3).reshape(matrix_shape(weight.shape))


def take_rows(panels: Array, rows: Array) -> Array:
    """Rows of the matrix.

    Args:
        panels: of the matrix.
        rows: int32 `[...]`, which ones; each within the matrix.

    Returns: `[..., inputs]`.
    """
    found = panels.at[rows // PANEL, :, rows % PANEL].get(mode="promise_in_bounds")
    return found.reshape(*rows.shape, matrix_shape(panels.shape)[1])


class PanelRows:
    """Panels that are written to row by row, as if they were the matrix.

    Args:
        panels: what to fill, contiguous.
    """

    def __init__(self, panels: np.ndarray) -> None:
        self.shape = matrix_shape(panels.shape)
        self.dtype = panels.dtype
        self._words = panels.view(np.uint32)[..., 0]

    def __setitem__(self, rows: slice, values: Any) -> None:
        """Args: rows: without a step; values: what a matrix of these rows could be set to."""
        first, last, _ = rows.indices(self.shape[0])
        if first >= last:
            return
        matrix = np.empty((last - first, self.shape[1]), self.dtype)
        matrix[...] = values
        words = matrix.view(np.uint32)
        begin, end = -(-first // PANEL), last // PANEL
        alone: Sequence[int] = range(first, last)
        if begin < end:  # whole panels are transposed, each in one go
            whole = words[begin * PANEL - first : end * PANEL - first]
            self._words[begin:end] = whole.reshape(end - begin, PANEL, -1).transpose(0, 2, 1)
            alone = (*range(first, begin * PANEL), *range(end * PANEL, last))
        for row in alone:
            self._words[row // PANEL, :, row % PANEL] = words[row - first]
