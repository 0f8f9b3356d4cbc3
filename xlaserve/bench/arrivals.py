"""When requests arrive: a Poisson process, or one with gamma distributed gaps, which is burstier or steadier."""

from __future__ import annotations

import math

import numpy as np


def arrival_times(count: int, rate: float, burstiness: float, rng: np.random.Generator) -> list[float]:
    """Seconds from the first arrival to each.

    Gaps are not stretched so that their mean meets the rate, as vLLM's client does: few arrivals then are as irregular as a Poisson
    process is. The rate that came of it is told with the results.

    Args:
        count: how many arrivals.
        rate: mean arrivals a second; infinity lets all arrive at once.
        burstiness: shape of the gamma distribution of the gaps. 1 makes them exponential, a Poisson process; less bunches arrivals,
            more spaces them evenly. The gaps' coefficient of variation is 1 / sqrt(burstiness).
        rng: where chance comes from.
    """
    if math.isinf(rate):
        return [0.0] * count
    gaps = rng.gamma(burstiness, 1 / (rate * burstiness), count - 1)
    return [0.0, *np.cumsum(gaps).tolist()]
