"""Scores on the device against plain NumPy: log probabilities, ranks and the most likely tokens, with and without conditionals."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

from xlaserve.sampling.logprobs import score
from xlaserve.sampling.params import MAX_LOGPROBS
from xlaserve.sampling.scores import SCORE_WIDTH, read_scores

VOCAB = 60


@functools.cache
def compiled(branches: bool) -> Any:
    return jax.jit(functools.partial(score, branches=branches, kind="sort" if branches else "neuron"))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("branches", [True, False])
@pytest.mark.parametrize("scale", [0.1, 5.0, 300.0])
def test_scores_of_every_row(scale: float, branches: bool) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, scale, (6, VOCAB)).astype(np.float32)
    tokens = rng.integers(0, VOCAB, 6).astype(np.int32)
    wanted = np.array([1, 3, 21, 2, 1, 21], np.int32)
    rows = np.asarray(compiled(branches)(logits, tokens, wanted))
    assert rows.shape == (6, SCORE_WIDTH)
    for row, values, token, top in zip(rows, log_softmax(logits), tokens.tolist(), (wanted - 1).tolist(), strict=True):
        order = np.argsort(-values, kind="stable")
        scores = read_scores(row, token, top)
        assert [s.token_id for s in scores] == [token, *(int(t) for t in order[:top] if t != token)]
        for s in scores:
            assert s.logprob == pytest.approx(values[s.token_id], abs=1e-5 * max(1.0, scale))
            assert s.rank == int(np.flatnonzero(order == s.token_id)[0]) + 1


@pytest.mark.parametrize("branches", [True, False])
def test_among_equals_the_lower_id_comes_first(branches: bool) -> None:
    logits = np.zeros((1, VOCAB), np.float32)
    row = np.asarray(compiled(branches)(logits, np.array([5], np.int32), np.array([21], np.int32)))[0]
    scores = read_scores(row, 5, MAX_LOGPROBS)
    assert [s.token_id for s in scores] == [5, *(t for t in range(MAX_LOGPROBS) if t != 5)]
    assert scores[0].rank == 1, "nothing is more likely"


def test_nothing_is_computed_for_rows_that_ask_for_nothing() -> None:
    logits = np.random.default_rng(1).normal(0, 1, (3, VOCAB)).astype(np.float32)
    assert not np.asarray(compiled(True)(logits, np.zeros(3, np.int32), np.zeros(3, np.int32))).any()
