"""What xlaserve is to reach beside its peers, and whether it does, from results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.peers.comparison import Record
from benchmarks.peers.speedup import paired_speedup
from benchmarks.peers.workload import MEASURES
from xlaserve.bench.spread import Spread

_MEASURES = {measure.name: measure for measure in MEASURES}


@dataclass(frozen=True, slots=True)
class Goal:
    """At least so many times as fast as each of some rivals.

    Args:
        measure: name of a `Measure`.
        ours: name of our contestant.
        rivals: names of the others; where there are several, the fastest counts.
        at_least: the speedup to reach, in the median.
    """

    measure: str
    ours: str
    rivals: tuple[str, ...]
    at_least: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a goal came out: beside which rival, and the speedup; None where one of the two has no results."""

    goal: Goal
    rival: str
    speedup: Spread | None

    @property
    def verdict(self) -> str:
        """In words."""
        if self.speedup is None:
            return "not measured"
        return "met" if self.speedup.median >= self.goal.at_least else "not met"


_VLLM = "vLLM float32"
_LLAMA_CPP = (
    ("xlaserve float32", ("llama.cpp F32",)),
    ("xlaserve bfloat16", ("llama.cpp BF16", "llama.cpp F16")),
    ("xlaserve int8", ("llama.cpp Q8_0",)),
)
GOALS = (
    Goal("decode", "xlaserve float32", (_VLLM,), 1.2),
    Goal("batch-32", "xlaserve float32", (_VLLM,), 1.2),
    *(Goal(name, "xlaserve float32", (_VLLM,), 1.0) for name in ("ttft-128", "ttft-512", "ttft-1024")),
    *(
        Goal(name, ours, rivals, at_least)
        for ours, rivals in _LLAMA_CPP
        for name, at_least in (("decode", 0.9), ("batch-8", 1.5), ("batch-32", 1.5))
    ),
)


def outcome(goal: Goal, records: Mapping[str, Record]) -> Outcome:
    """How a goal came out.

    Args:
        goal: which.
        records: by the contestant's name.
    """
    speedups: list[tuple[str, Spread]] = []
    for rival in goal.rivals:
        if goal.ours not in records or rival not in records:
            return Outcome(goal, rival, None)
        ours, theirs = (records[name].values.get(goal.measure, []) for name in (goal.ours, rival))
        found = paired_speedup(_MEASURES[goal.measure], ours, theirs)
        if found is None:
            return Outcome(goal, rival, None)
        speedups.append((rival, found))
    rival, least = min(speedups, key=lambda pair: pair[1].median)
    return Outcome(goal, rival, least)
