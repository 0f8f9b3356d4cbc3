"""The benchmark of perplexity scores what it says: every token but the first of a window, by the model's own probabilities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.perplexity import TEXT, Scores, compare, score, table, windows
from tests.tooling.engine_logits import LogitsEngine
from xlaserve import LLM


def test_tokens_are_scored_by_their_logits(tiny_llm: LLM, tiny_model: Callable[[str], Path]) -> None:
    tokens = np.random.default_rng(0).integers(10, 500, 111).tolist()
    pieces = windows(tokens, 55)
    assert [len(piece) for piece in pieces] == [55, 55], "the last token has nothing before it"
    scores = score(tiny_llm, pieces)
    engine = LogitsEngine(tiny_model("llama3"), max_len=64)
    logits = np.stack([engine.logits(piece, chunk=64, generated=0)[:-1] for piece in pieces]).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = [logprobs[i, at, token] for i, piece in enumerate(pieces) for at, token in enumerate(piece[1:])]
    np.testing.assert_allclose(scores.logprobs, wanted, atol=1e-4)
    assert scores.leaders.tolist() == logits.argmax(-1).reshape(-1).tolist()
    assert scores.weight_bytes == tiny_llm._engine.plan.weight_bytes


def test_a_comparison() -> None:
    first = Scores(np.log([0.5, 0.5, 0.25, 0.25]), np.array([1, 2, 3, 4]), 1 << 20)
    other = Scores(np.log([0.5, 0.25, 0.25, 0.25]), np.array([1, 2, 3, 5]), 3 << 20)
    line = compare("other", other, first)
    assert np.isclose(line.perplexity, 2 ** (7 / 4))
    assert np.isclose(line.ratio, 2 ** (1 / 4))
    assert line.agreement == 0.75
    assert "| other | 3 | 3.364 | 1.1892 ± 0.1501 | 75.00% |" in table([line])


def test_the_text_is_whole() -> None:
    text = TEXT.read_text(encoding="utf-8")
    assert text.startswith(
        "CHAPTER I\n\nDown the Rabbit-Hole\n\nAlice was beginning to get very tired of sitting by her sister on the bank"
    )
    assert text.endswith("Alice led the way, and the whole party swam to the shore.\n")
    assert len(text) == 22165
