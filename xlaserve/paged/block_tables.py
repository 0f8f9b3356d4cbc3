"""Block tables of the sequences that hold a slot, as one array that steps copy rows from. No JAX."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xlaserve.paged.block_pool import NULL_BLOCK


class BlockTables:
    """int32 `[slots, width]`; row s lists the blocks of the sequence in slot s, the null block beyond them."""

    def __init__(self, slots: int, width: int) -> None:
        self._rows: NDArray[np.int32] = np.full((slots, width), NULL_BLOCK, np.int32)

    def append(self, slot: int, at: int, blocks: Sequence[int]) -> None:
        """Write `blocks` into the row of `slot` from place `at` on."""
        self._rows[slot, at : at + len(blocks)] = blocks

    def clear(self, slot: int) -> None:
        """Empty the row of `slot`."""
        self._rows[slot] = NULL_BLOCK

    def rows(self, slots: Sequence[int] | NDArray[np.intp], width: int) -> NDArray[np.int32]:
        """A copy of the rows of `slots`, `[len(slots), width]`."""
        return self._rows[np.asarray(slots), :width]
