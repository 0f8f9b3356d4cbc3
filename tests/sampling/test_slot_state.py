"""Penalties, biases and bad words on the device against plain NumPy, with and without conditionals, row by row."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

from xlaserve.sampling.params import MASKED, MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS
from xlaserve.sampling.slot_state import AdjustmentRows, SlotState, adjust, advance, seat, state_shapes

SLOTS, VOCAB = 5, 40


def empty_state() -> SlotState:
    state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), state_shapes(SLOTS, VOCAB))
    return state._replace(recent=state.recent - 1, words=state.words - 1)


def random_state(rng: np.random.Generator) -> SlotState:
    state = empty_state()
    state.seen[:] = rng.integers(0, 6, state.seen.shape) * (rng.random(state.seen.shape) < 0.5)
    state.bias[:] = rng.normal(0, 20, state.bias.shape)
    state.bias[rng.random(state.bias.shape) < 0.2] = MASKED
    state.recent[:] = rng.integers(0, VOCAB, state.recent.shape)
    for slot in range(SLOTS):
        for word in state.words[slot, : rng.integers(0, 9)]:
            length = rng.integers(1, 4)
            # Half of them are about to be completed.
            if length > 1:
                word[-length:-1] = state.recent[slot, -(length - 1) :] if rng.random() < 0.5 else rng.integers(0, VOCAB, length - 1)
            word[-1] = rng.integers(0, VOCAB)
    return state


def expected(logits: np.ndarray, state: SlotState, slot: np.ndarray, rows: AdjustmentRows) -> np.ndarray:
    """The definitions, one row and one token at a time."""
    out = logits.astype(np.float64)
    for row, place in enumerate(slot):
        banned = set()
        if rows.biased[row]:
            out[row] += state.bias[place].astype(np.float64)
            banned |= set(np.flatnonzero(state.bias[place] <= MASKED).tolist())
        if rows.worded[row]:
            for word in state.words[place]:
                known = [int(t) for t in word if t >= 0]
                if known and (len(known) == 1 or state.recent[place, -(len(known) - 1) :].tolist() == known[:-1]):
                    banned.add(known[-1])
        for token in range(VOCAB):
            generated, prompt = divmod(int(state.seen[place, token]), 2)
            if generated or prompt:
                repetition = float(rows.repetition[row])
                out[row, token] = out[row, token] / repetition if out[row, token] > 0 else out[row, token] * repetition
            out[row, token] -= float(rows.frequency[row]) * generated + float(rows.presence[row]) * (generated > 0)
        out[row, list(banned)] = MASKED
    return out


@functools.cache
def compiled(branches: bool) -> Any:
    return jax.jit(functools.partial(adjust, branches=branches))


@pytest.mark.parametrize("branches", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_adjusted_logits(seed: int, branches: bool) -> None:
    rng = np.random.default_rng(seed)
    state = random_state(rng)
    slot = rng.permutation(SLOTS)[:4].astype(np.int32)
    logits = rng.normal(0, 5, (4, VOCAB)).astype(np.float32)

    def some(values: np.ndarray, neutral: float) -> np.ndarray:
        return np.where(rng.random(4) < 0.6, values, neutral).astype(np.float32)

    rows = AdjustmentRows(  # type: ignore[arg-type]
        some(rng.uniform(-2, 2, 4), 0),
        some(rng.uniform(-2, 2, 4), 0),
        some(rng.uniform(0.5, 2, 4), 1),
        rng.random(4) < 0.5,
        rng.random(4) < 0.5,
    )
    got = np.asarray(compiled(branches)(logits, state, slot, rows))
    want = expected(logits, state, slot, rows)
    masked = want <= MASKED
    assert np.array_equal(got <= MASKED / 2, masked)
    assert np.abs(got - want)[~masked].max() < 1e-4


@pytest.mark.parametrize("branches", [True, False])
def test_rows_that_ask_for_nothing_keep_their_logits_whatever_their_slots_hold(branches: bool) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (3, VOCAB)).astype(np.float32)
    slot = np.array([2, 0, SLOTS], np.int32)
    rows = AdjustmentRows(np.float32([0, 0, 0]), np.float32([0, 0, 0]), np.float32([1, 1, 1]), np.zeros(3, bool), np.zeros(3, bool))  # type: ignore[arg-type]
    assert np.array_equal(compiled(branches)(logits, random_state(rng), slot, rows), logits)
    # Also beside a row that asks for everything.
    rows = AdjustmentRows(np.float32([0, 1, 0]), np.float32([0, 1, 0]), np.float32([1, 2, 1]), *[np.array([False, True, False])] * 2)  # type: ignore[arg-type]
    got = np.asarray(compiled(branches)(logits, random_state(rng), slot, rows))
    assert np.array_equal(got[[0, 2]], logits[[0, 2]])
    assert not np.array_equal(got[1], logits[1])


def test_a_masked_token_stays_masked_under_every_penalty() -> None:
    state = empty_state()
    state.bias[0] = MASKED
    state.bias[0, 7] = 0
    state.seen[0] = 3
    rows = AdjustmentRows(*(np.array([x], np.float32) for x in (-2, -2, 0.01)), np.array([True]), np.array([False]))  # type: ignore[arg-type]
    got = np.asarray(compiled(True)(np.full((1, VOCAB), 50, np.float32), state, np.array([0], np.int32), rows))
    assert got.argmax() == 7
    assert (np.delete(got[0], 7) <= MASKED / 2).all()


def test_sampled_tokens_are_noted_in_their_slots_only() -> None:
    state = random_state(np.random.default_rng(1))
    slot, sampled = np.array([3, SLOTS, 1, SLOTS], np.int32), np.array([7, 0, 39, 5], np.int32)
    after = jax.tree.map(np.asarray, jax.jit(advance)(state, slot, sampled))
    seen = state.seen.copy()
    seen[3, 7] += 2
    seen[1, 39] += 2
    assert np.array_equal(after.seen[:SLOTS], seen[:SLOTS])
    for place, token in ((3, 7), (1, 39)):
        assert after.last_tokens[place] == token
        assert after.recent[place].tolist() == [*state.recent[place, 1:].tolist(), token]
    for place in (0, 2, 4):
        assert np.array_equal(after.recent[place], state.recent[place])
    assert np.array_equal(after.bias, state.bias)
    assert np.array_equal(after.words, state.words)


def test_seating_loads_one_slot_and_leaves_the_newest_tokens() -> None:
    rng = np.random.default_rng(2)
    before, loaded = random_state(rng), random_state(rng)
    before.last_tokens[:] = range(SLOTS + 1)
    after = jax.tree.map(np.asarray, jax.jit(seat)(before, np.int32(2), *(table[2] for table in loaded[1:])))
    for old, new, got in zip(before[1:], loaded[1:], after[1:], strict=True):
        assert np.array_equal(got[2], new[2])
        assert np.array_equal(np.delete(got, 2, axis=0), np.delete(old, 2, axis=0))
    assert np.array_equal(after.last_tokens, before.last_tokens)


def test_the_tables_hold_what_a_request_may_ask_for() -> None:
    shapes = state_shapes(SLOTS, VOCAB)
    assert shapes.words.shape == (SLOTS + 1, MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS)
    assert shapes.recent.shape == (SLOTS + 1, MAX_BAD_WORD_TOKENS - 1)
