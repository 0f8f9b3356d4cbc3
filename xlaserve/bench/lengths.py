"""Distributions of lengths in tokens, of prompts and of outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Lengths(Protocol):
    """A distribution of lengths."""

    def draw(self, rng: np.random.Generator) -> int:
        """One length, at least 1."""
        ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """Whole numbers from `mean * (1 - ratio)` to `mean * (1 + ratio)`, both included, each as likely (vLLM's --random-range-ratio).

    Args:
        mean: the middle.
        ratio: 0 up to but not including 1; 0 is always `mean`.
    """

    mean: int
    ratio: float = 0.0

    @property
    def low(self) -> int:
        """The shortest."""
        return max(1, math.floor(self.mean * (1 - self.ratio)))

    @property
    def high(self) -> int:
        """The longest."""
        return max(1, math.ceil(self.mean * (1 + self.ratio)))

    def draw(self, rng: np.random.Generator) -> int:
        """One length."""
        return int(rng.integers(self.low, self.high + 1))


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Log-normal lengths; what lies outside the limits is drawn again, as filtering a data set would drop it.

    Args:
        mean: of the distribution before it is cut.
        sigma: standard deviation of the logarithms.
        low, high: limits, both included.
    """

    mean: float
    sigma: float
    low: int
    high: int

    def draw(self, rng: np.random.Generator) -> int:
        """One length."""
        mu = math.log(self.mean) - self.sigma**2 / 2
        while True:
            if self.low <= (length := round(rng.lognormal(mu, self.sigma))) <= self.high:
                return length


SHAREGPT_INPUT = LogNormal(mean=161.31, sigma=1.2, low=4, high=1024)
SHAREGPT_OUTPUT = LogNormal(mean=337.99, sigma=0.9, low=4, high=1024)
"""Lengths like those of ShareGPT's conversations. The means are those that the vLLM paper gives for its sample (Kwon et al., SOSP 2023,
figure 11). It gives no widths: the shape, log-normal with these sigmas, is our choice. The limits are those by which vLLM's benchmarks
filter the data set (prompts and outputs of 4 tokens or more, prompts of 1,024 at most); they lower the means. Results tell what was drawn.
"""
