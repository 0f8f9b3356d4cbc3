"""Spreads of values that not every turn has, and ratios of runs that were made side by side."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peers.workload import Measure
from xlaserve.bench.spread import Spread


def spread(values: Sequence[float | None]) -> Spread | None:
    """Of the values that there are; None where there is none."""
    known = [value for value in values if value is not None]
    return Spread.of(known) if known else None


def paired_speedup(measure: Measure, ours: Sequence[float | None], theirs: Sequence[float | None]) -> Spread | None:
    """How many times as fast one engine is as another: each turn of one with the same turn of the other, right before or after it.

    Args:
        measure: what the values are of.
        ours, theirs: values by turn, None where there is none.
    """
    return spread([measure.speedup(a, b) for a, b in zip(ours, theirs, strict=False) if a is not None and b is not None])


def brief(found: Spread) -> str:
    """Median, least and most, with three digits that count."""
    return f"{_digits(found.median)} [{_digits(found.low)}, {_digits(found.high)}]"


def _digits(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1f}" if abs(value) < 99.95 else f"{value:.0f}"
