"""What a slot is loaded with, and when: once per owner, from the tokens that the sequence has."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from tests.engine.test_batch import builder, context, make
from xlaserve.engine.seating import seating, slot_bytes
from xlaserve.sampling.params import MASKED
from xlaserve.sampling.slot_state import state_shapes

VOCAB = 20


def test_counts_are_of_prompt_and_output() -> None:
    sequence = make(2, prompt=[5, 5, 6], repetition_penalty=1.5)
    sequence.output_ids = [6, 7, 7, 7]
    rows = seating(sequence, VOCAB)
    assert rows.slot == 2
    assert {i: n for i, n in enumerate(rows.seen.tolist()) if n} == {5: 1, 6: 3, 7: 6}
    assert rows.recent[-4:].tolist() == [6, 7, 7, 7]
    assert (rows.recent[:-4] == -1).all()
    assert not rows.bias.any()
    assert (rows.words == -1).all()


def test_recent_tokens_are_the_newest() -> None:
    sequence = make(0, presence_penalty=1.0)
    sequence.output_ids = list(range(19))
    rows = seating(sequence, VOCAB)
    assert rows.recent.tolist() == list(range(19 - len(rows.recent), 19))


def test_bias_and_allowed_ids_are_one_row() -> None:
    rows = seating(make(0, logit_bias={3: 2.5, 4: -100}, allowed_token_ids=[3, 9]), VOCAB)
    assert rows.bias[[3, 9]].tolist() == [2.5, 0]
    assert (np.delete(rows.bias, [3, 9]) <= MASKED / 2).all()


def test_bad_words_end_at_the_right() -> None:
    sequence = make(0)
    sequence.bad_words = ((4,), (1, 2, 3))
    words = seating(sequence, VOCAB).words
    assert words[0].tolist() == [-1] * 15 + [4]
    assert words[1, -3:].tolist() == [1, 2, 3]
    assert (words[2:] == -1).all()


def test_a_slot_is_loaded_for_each_owner_that_needs_it() -> None:
    build = builder([4], [5])
    cases: list[tuple[dict[str, Any], bool]] = [
        ({}, False),
        ({"presence_penalty": 0.5}, True),
        ({"temperature": 0.0, "logit_bias": {1: 1}}, True),
        ({"allowed_token_ids": [1]}, True),
        ({"repetition_penalty": 1.0, "frequency_penalty": 0.0}, False),
    ]
    for params, needed in cases:
        sequence = make(0, **params)
        context(build, sequence, 0, 3)
        assert build.take_seated() == ([sequence] if needed else [])
        sequence.output_ids, sequence.in_flight = [9], 0
        context(build, sequence, 0, 4)
        assert build.take_seated() == [], "it sits there already, and the device keeps count"


def test_memory_is_what_the_graphs_ask_for() -> None:
    shapes = state_shapes(6, VOCAB)
    assert slot_bytes(6, VOCAB) == sum(int(np.prod(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(shapes))
