"""What the host promises of the integers that it puts into graphs: with it the lint proves that no index is out of range."""

from __future__ import annotations

import numpy as np

from xlaserve.buckets.graphs import GraphSpec
from xlaserve.buckets.ladder import BLANK, COPY, SEAT, Bucket, ContextBucket, UpkeepBucket
from xlaserve.buckets.layout import BANNED_AT, TOKENS_AT, Header, row_width, table_at
from xlaserve.buckets.lint.ranges import Contract, between

_INT32 = np.iinfo(np.int32)


def contract(spec: GraphSpec, bucket: Bucket | UpkeepBucket) -> Contract:
    """The interval of every integer argument of a graph that is an index, or becomes one, by the argument's name.

    Args:
        spec: what graphs have in common.
        bucket: which graph.
    """
    tokens, slots, blocks = spec.model.vocab_size - 1, spec.max_num_seqs, spec.num_blocks - 1
    # A slot that nothing was loaded into holds zeros.
    state = {"state.last_tokens": between(0, tokens), "state.recent": between(-1, tokens), "state.words": between(-1, tokens)}
    if bucket == SEAT:
        return {**state, "slot": between(0, slots)}
    if bucket == BLANK:
        return {}
    if bucket == COPY:
        return {"source": between(0, blocks), "target": between(0, blocks)}
    assert not isinstance(bucket, UpkeepBucket)
    low = np.full(row_width(bucket), _INT32.min, np.int64)
    high = np.full(row_width(bucket), _INT32.max, np.int64)

    def promise(place: int | slice, least: int, most: int) -> None:
        low[place], high[place] = least, most

    promise(Header.SLOT, 0, slots)
    promise(Header.START, 0, bucket.width * spec.block_size - 1)
    promise(Header.LENGTH, 0, bucket.length if isinstance(bucket, ContextBucket) else 1)
    promise(Header.NEXT_TOKEN, 0, tokens)
    promise(Header.TOKEN, 0, tokens + 1)
    promise(slice(BANNED_AT, TOKENS_AT), -1, tokens)
    promise(slice(TOKENS_AT, table_at(bucket)), 0, tokens)
    promise(slice(table_at(bucket), None), 0, blocks)
    return {**state, "batch": between(low, high)}
