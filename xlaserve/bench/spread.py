"""`Spread`: all values of one measured quantity, and what is told of them. A figure is never told without how far its values lie apart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Spread:
    """Values of one quantity, in any unit.

    Args:
        values: as they were measured; `Spread` keeps them sorted too.
    """

    values: tuple[float, ...]
    _sorted: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sorted", tuple(sorted(self.values)))

    @classmethod
    def of(cls, values: Iterable[float], scale: float = 1.0) -> Spread:
        """The spread of `values`, each times `scale`."""
        return cls(tuple(value * scale for value in values))

    @property
    def mean(self) -> float:
        """Arithmetic mean; NaN where there are no values, as with everything here."""
        return math.fsum(self.values) / len(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        """Standard deviation of the values themselves (divided by their number, as `numpy.std` does)."""
        if not self.values:
            return math.nan
        mean = self.mean
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / len(self.values))

    @property
    def low(self) -> float:
        """The smallest value."""
        return self._sorted[0] if self._sorted else math.nan

    @property
    def median(self) -> float:
        """The value in the middle."""
        return self.percentile(50)

    @property
    def high(self) -> float:
        """The largest value."""
        return self._sorted[-1] if self._sorted else math.nan

    def percentile(self, percent: float) -> float:
        """The value that `percent` of all values do not exceed, between neighbours on the straight line between them (numpy's default;
        type 7 of Hyndman & Fan, 1996).
        """
        if not self._sorted:
            return math.nan
        place = (len(self._sorted) - 1) * percent / 100
        below = math.floor(place)
        above = min(below + 1, len(self._sorted) - 1)
        return self._sorted[below] + (self._sorted[above] - self._sorted[below]) * (place - below)

    def as_json(self, percentiles: Iterable[float] = ()) -> dict[str, float | int | None]:
        """Count, mean, standard deviation, smallest, median, largest and the percentiles asked for; null where there is nothing."""
        told = {"mean": self.mean, "std": self.std, "min": self.low, "median": self.median, "max": self.high}
        told |= {percentile_name(percent): self.percentile(percent) for percent in percentiles}
        return {"count": len(self.values), **{name: finite(value) for name, value in told.items()}}

    def text(self, digits: int = 1) -> str:
        """The median, and the smallest and the largest value in brackets."""
        if not self.values:
            return "-"
        return f"{self.median:,.{digits}f} [{self.low:,.{digits}f}, {self.high:,.{digits}f}]"


def percentile_name(percent: float) -> str:
    """p99, p99.9."""
    return f"p{percent:g}"


def finite(value: float) -> float | None:
    """A number that JSON has; None for NaN and infinities."""
    return value if math.isfinite(value) else None
