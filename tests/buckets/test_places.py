"""Where tokens stand in a step, against plain loops."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from xlaserve.buckets.places import places, shared_places


@pytest.mark.parametrize("lengths", [[3, 1, 4], [8, 0, 0], [0, 0, 0], [1, 7, 0], [2, 2, 0]])
def test_shared_places_hold_one_sequence_after_another(lengths: list[int]) -> None:
    start = [16, 0, 32]
    at = shared_places(jnp.array(start, jnp.int32), jnp.array(lengths, jnp.int32), 8)
    tokens = [(row, i) for row, length in enumerate(lengths) for i in range(length)]
    assert at.source is not None
    sequence, offset = (np.asarray(array) for array in at.source)
    assert [*zip(sequence[0, : len(tokens)].tolist(), offset[0, : len(tokens)].tolist(), strict=True)] == tokens
    assert np.asarray(at.positions)[0, : len(tokens)].tolist() == [start[row] + i for row, i in tokens]
    assert np.asarray(at.tokens).tolist() == [len(tokens)]
    for row, (place, length) in enumerate(zip(np.asarray(at.last).tolist(), lengths, strict=True)):
        assert not length or tokens[place] == (row, length - 1)
    # What places without a token say of theirs is in range all the same.
    assert ((sequence >= 0) & (sequence < 3)).all()
    assert ((offset >= 0) & (offset < 8)).all()
    assert ((np.asarray(at.last) >= 0) & (np.asarray(at.last) < 8)).all()


def test_each_sequence_has_places_of_its_own() -> None:
    at = places(jnp.array([16, 0, 0], jnp.int32), jnp.array([3, 4, 0], jnp.int32), 4)
    assert at.source is None
    assert np.asarray(at.positions).tolist() == [[16, 17, 18, 19], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert np.asarray(at.tokens).tolist() == [3, 4, 0]
    assert np.asarray(at.last).tolist() == [2, 7, 8]
