"""The int32 array that a step sends to the device: where each field of a row stands. Imports no JAX.

A row is: header fields, banned token ids, then for context graphs the chunk's tokens, then the block table. Floats travel as their
bits. Host and graph both take the places from here. Beside it goes the mask of allowed tokens, a row of bits for each row.
"""

from __future__ import annotations

from enum import IntEnum, auto

from xlaserve.buckets.ladder import Bucket, ContextBucket
from xlaserve.sampling.params import MAX_STOP_TOKEN_IDS

MAX_EOS_IDS = 8
BANNED = MAX_STOP_TOKEN_IDS + MAX_EOS_IDS
"""Places for token ids that a row may not choose yet: all its stop ids and end-of-sequence ids."""


class Header(IntEnum):
    """Header fields of a row, in order."""

    SLOT = 0  # place in the table of last tokens; the spare one at the end for padding and for chunks that sample nothing
    START = auto()  # position of the row's first token
    LENGTH = auto()  # tokens in the row, 0 of padding; the last of them is sampled from
    TEMPERATURE = auto()
    TOP_K = auto()
    TOP_P = auto()
    MIN_P = auto()
    SEED_LOW = auto()
    SEED_HIGH = auto()
    PLACE = auto()  # tokens drawn from the row's random stream before
    PRESENCE = auto()
    FREQUENCY = auto()
    REPETITION = auto()
    TOKEN = auto()  # 1 more than the row's token, where the host decides on it; 0 where the table of last tokens has it
    BIASED = auto()  # 1 where the slot's bias counts
    WORDED = auto()  # 1 where the slot's bad words count
    STRUCTURED = auto()  # 1 where the row's mask of allowed tokens counts
    PROMPT_LOGPROBS = auto()  # as LOGPROBS, for the tokens after each of the chunk's
    NEXT_TOKEN = auto()  # the token after the chunk's last one, where the chunk asks for those
    LOGPROBS = auto()  # 1 more than the number of most likely tokens to score beside the sampled one; 0 scores nothing


BANNED_AT = len(Header)
TOKENS_AT = BANNED_AT + BANNED


def tokens_in_row(bucket: Bucket) -> int:
    """Token ids that a row carries: none in a generate graph, which reads them from the table of last tokens."""
    return bucket.length if isinstance(bucket, ContextBucket) else 0


def table_at(bucket: Bucket) -> int:
    """Where the block table starts."""
    return TOKENS_AT + tokens_in_row(bucket)


def mask_width(vocab: int) -> int:
    """int32 numbers in a row's mask of allowed tokens: token `t` is bit `t % 32` of number `t // 32`."""
    return -(-vocab // 32)


def row_width(bucket: Bucket) -> int:
    """int32 numbers in a row."""
    return table_at(bucket) + bucket.width
