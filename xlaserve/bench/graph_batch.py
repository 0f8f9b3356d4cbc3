"""Batches as the engine gives them to a graph amid its work: every row a sequence, with blocks of its own. Imports no JAX."""

from __future__ import annotations

import numpy as np

from xlaserve.bench.graph_work import RowWork
from xlaserve.buckets.ladder import Bucket, ContextBucket, GenerateBucket
from xlaserve.buckets.layout import TOKENS_AT, Header, table_at
from xlaserve.engine.batch import Batch, empty_batch


def contexts_of(bucket: Bucket, contexts: tuple[int, ...], block_size: int) -> list[int]:
    """Lengths of context in use with which a graph can be run, rising: those asked for that its tables hold. Of a context graph also its
    own length, a prompt's first chunk, and of others those that are longer, rounded down to whole blocks.
    """
    most = bucket.width * block_size
    if isinstance(bucket, GenerateBucket):
        return sorted({context for context in contexts if context <= most})
    later = {context // block_size * block_size for context in contexts}
    return sorted({bucket.share, *(context for context in later if bucket.share < context <= most)})


def graph_batch(
    bucket: Bucket, context: int, *, block_size: int, num_blocks: int, spare_slot: int, vocab_size: int, rng: np.random.Generator
) -> tuple[Batch, list[RowWork]] | None:
    """One batch with every row at work.

    Args:
        bucket: of the graph.
        context: tokens of each sequence, the computed ones included; from `contexts_of`.
        block_size: tokens per KV block.
        num_blocks: KV blocks, the null block included.
        spare_slot: the slot of padding.
        vocab_size: token ids that there are.
        rng: where tokens and places of blocks come from.

    Returns:
        The batch and what its rows compute; None where there are too few KV blocks for blocks of each row's own.
    """
    needed = -(-context // block_size)
    if bucket.rows * needed > num_blocks - 1:
        return None
    length = bucket.share if isinstance(bucket, ContextBucket) else 1
    batch = empty_batch(bucket, spare_slot)
    batch[:, Header.SLOT] = np.arange(bucket.rows)
    batch[:, Header.START] = context - length
    batch[:, Header.LENGTH] = length
    if isinstance(bucket, ContextBucket):
        batch[:, TOKENS_AT : TOKENS_AT + length] = rng.integers(0, vocab_size, (bucket.rows, length))
    blocks = rng.permutation(np.arange(1, num_blocks))[: bucket.rows * needed]
    batch[:, table_at(bucket) : table_at(bucket) + needed] = blocks.reshape(bucket.rows, needed)
    return batch, [RowWork(context - length, length)] * bucket.rows
