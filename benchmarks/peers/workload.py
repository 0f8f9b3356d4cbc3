"""What is measured, and the prompts for it: token ids from fixed seeds, the same for every engine and in every run.

Prompts of one measure have the same lengths in every turn and other tokens, so that no cache of prompts could help an engine that
failed to turn its own off. Imports nothing but the standard library: every engine's process uses it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_TOKEN_IDS = (1000, 40000)
"""Ordinary tokens of the demo's vocabulary."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing that is measured.

    Args:
        name: short and stable.
        title: for tables.
        requests: at once.
        shortest, longest: prompts, in tokens, chosen at random between.
        output_len: tokens to generate for each.
        unit: "ms" (to the first token; less is better) or "tok/s" (generated; more is better).
        turns: in each repeat. What takes a second has several: a machine that others use too is not the same from one second to the next.
    """

    name: str
    title: str
    requests: int
    shortest: int
    longest: int
    output_len: int
    unit: str
    turns: int = 1

    def prompts(self, turn: int) -> list[list[int]]:
        """The prompts of one turn, counted through all repeats."""
        lengths = random.Random(self.name)
        tokens = random.Random(f"{self.name} {turn}")
        return [[tokens.randrange(*_TOKEN_IDS) for _ in range(lengths.randint(self.shortest, self.longest))] for _ in range(self.requests)]

    def value(self, seconds: float, first_seconds: float) -> float:
        """What one run comes to, in the measure's unit.

        Args:
            seconds: from handing over the prompts to having all tokens.
            first_seconds: from the same moment to the first token of the first prompt.
        """
        if self.unit == "ms":
            return 1e3 * first_seconds
        if self.requests == 1:
            return (self.output_len - 1) / (seconds - first_seconds)
        return self.requests * self.output_len / seconds

    def speedup(self, ours: float, theirs: float) -> float:
        """How many times as fast one is as another, from two values."""
        return theirs / ours if self.unit == "ms" else ours / theirs


MEASURES = (
    Measure("decode", "decode", 1, 128, 128, 128, "tok/s"),
    Measure("ttft-128", "TTFT at 128", 1, 128, 128, 1, "ms", turns=4),
    Measure("ttft-512", "TTFT at 512", 1, 512, 512, 1, "ms", turns=4),
    Measure("ttft-1024", "TTFT at 1024", 1, 1024, 1024, 1, "ms", turns=4),
    Measure("batch-8", "8 requests", 8, 32, 256, 64, "tok/s"),
    Measure("batch-32", "32 requests", 32, 32, 256, 64, "tok/s"),
)
MAX_MODEL_LEN = 2048
"""What engines are set up for: longer than any of these needs."""
MAX_REQUESTS = max(measure.requests for measure in MEASURES)
