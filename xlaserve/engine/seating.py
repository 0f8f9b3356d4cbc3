"""What the device must know of a sequence that takes a slot, beyond its tokens' KV: the rows that the `seat` graph loads. No JAX."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlaserve.engine.sequence import Sequence
from xlaserve.sampling.params import MASKED, MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS


class Seating(NamedTuple):
    """Arguments of `xlaserve.sampling.slot_state.seat` after the state; V is the vocabulary's size."""

    slot: NDArray[np.int32]  # scalar
    seen: NDArray[np.int32]  # [V]
    bias: NDArray[np.float32]  # [V]
    recent: NDArray[np.int32]  # [MAX_BAD_WORD_TOKENS - 1]
    words: NDArray[np.int32]  # [MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS]


def seating(sequence: Sequence, vocab_size: int) -> Seating:
    """The rows of a sequence, from the tokens that it has, none of which may be in flight."""
    assert sequence.slot is not None
    rows, params = empty_seating(sequence.slot, vocab_size), sequence.params
    if params.penalized:
        rows.seen[:] = 2 * np.bincount(np.array(sequence.output_ids, np.int64), minlength=vocab_size)
        rows.seen[sequence.prompt_ids] += 1
    if params.allowed_token_ids:
        rows.bias[:] = MASKED
        rows.bias[list(params.allowed_token_ids)] = 0
    for token, bias in (params.logit_bias or {}).items():
        rows.bias[token] += bias
    if recent := sequence.output_ids[-len(rows.recent) :]:
        rows.recent[-len(recent) :] = recent
    for row, word in zip(rows.words, sequence.bad_words, strict=False):
        row[-len(word) :] = word
    return rows


def empty_seating(slot: int, vocab_size: int) -> Seating:
    """Rows that change nothing."""
    return Seating(
        np.array(slot, np.int32),
        np.zeros(vocab_size, np.int32),
        np.zeros(vocab_size, np.float32),
        np.full(MAX_BAD_WORD_TOKENS - 1, -1, np.int32),
        np.full((MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS), -1, np.int32),
    )


def slot_bytes(max_num_seqs: int, vocab_size: int) -> int:
    """What the device's state takes: the rows of every slot, of the spare one, and of the newest tokens."""
    return (max_num_seqs + 1) * sum(array.nbytes for array in empty_seating(0, vocab_size))
