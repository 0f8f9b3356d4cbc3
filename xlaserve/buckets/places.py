"""Where the tokens of a step stand: in a row of places for each sequence, or one sequence after another in a row that all share."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Places(NamedTuple):
    """R rows of L places, for the tokens of S sequences.

    Args:
        positions: int32 `[R, L]`, the position of each place's token in its sequence; places without a token go on counting.
        tokens: int32 `[R]`, how many places of each row hold a token, the first ones.
        last: int32 `[S]`, the place of each sequence's last token, counted through all rows; of padding, which has none, any place.
        source: where all share a row, int32 `[R, L]` each: whose token each place holds, and which of those in this step.
    """

    positions: Array
    tokens: Array
    last: Array
    source: tuple[Array, Array] | None = None


def places(start: Array, lengths: Array, length: int) -> Places:
    """A row of `length` places for each sequence.

    Args:
        start: int32 `[S]`, the position of each sequence's first token.
        lengths: int32 `[S]`, how many tokens of each there are, 0 of padding.
        length: places of a row.
    """
    first = length * jnp.arange(start.shape[0], dtype=jnp.int32)
    return Places(start[:, None] + jnp.arange(length, dtype=jnp.int32), lengths, first + jnp.maximum(lengths, 1) - 1)


def shared_places(start: Array, lengths: Array, length: int) -> Places:
    """One row of `length` places for all sequences; all their tokens are no more. Arguments as for `places`."""
    ends = jnp.cumsum(lengths)
    place = jnp.arange(length, dtype=jnp.int32)
    # Places after the last token count as the last row's.
    sequence = jnp.minimum(jnp.sum(place[:, None] >= ends[None], axis=1, dtype=jnp.int32), start.shape[0] - 1)
    offset = place - (ends - lengths)[sequence]
    return Places((start[sequence] + offset)[None], ends[-1:], jnp.clip(ends - 1, 0, length - 1), (sequence[None], offset[None]))
