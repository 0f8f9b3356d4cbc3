"""Log probabilities as they travel from the device to the host: one int32 row per token. No JAX.

A row is: the token's rank (1 for the most likely), its log probability, ids of the most likely tokens, their log probabilities. Floats
travel as their bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlaserve.sampling.params import MAX_LOGPROBS

RANK_AT = 0
CHOSEN_AT = 1
IDS_AT = 2
VALUES_AT = IDS_AT + MAX_LOGPROBS
SCORE_WIDTH = VALUES_AT + MAX_LOGPROBS


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token that was likely at some place, or was chosen there: its id, log probability and rank."""

    token_id: int
    logprob: float
    rank: int


def read_scores(row: NDArray[np.int32], token: int, top: int) -> list[TokenScore]:
    """The scores of one place.

    Args:
        row: int32 `[SCORE_WIDTH]`.
        token: the token that is there.
        top: how many of the most likely tokens are wanted.

    Returns:
        The token there, then the most likely ones in order; where it is one of those, it comes once, at the beginning.
    """
    values = row.view(np.float32)
    chosen = TokenScore(token, float(values[CHOSEN_AT]), int(row[RANK_AT]))
    ids, logprobs = row[IDS_AT : IDS_AT + top].tolist(), values[VALUES_AT : VALUES_AT + top].tolist()
    likely = (TokenScore(*each) for each in zip(ids, logprobs, range(1, top + 1), strict=True))
    return [chosen, *(score for score in likely if score.token_id != token)]
