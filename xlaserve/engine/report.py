"""What an engine is doing at one moment: who holds which slot, who waits, and how its graphs are used. Plain data, no JAX."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from xlaserve.engine.graph_table import GraphReport
from xlaserve.engine.sequence import Sequence

WAITING_SHOWN = 64
"""Sequences in line that a report lists: a queue may be long, and whoever looks at it sees its front."""


class SequenceReport(NamedTuple):
    """One sequence.

    Args:
        request_id: the request that it belongs to.
        completion: which of the request's completions.
        slot: its place in the batch; None while it waits.
        prompt_tokens: tokens of its prompt.
        cached_tokens: of these, tokens that it did not have to compute.
        computed_tokens: tokens whose KV is computed, or on the way.
        output_tokens: tokens generated so far.
        max_tokens: prompt and output tokens at which it ends.
        blocks: KV blocks that it holds.
        arrival: when its request came, `time.monotonic()` seconds.
    """

    request_id: str
    completion: int
    slot: int | None
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    output_tokens: int
    max_tokens: int
    blocks: int
    arrival: float


class EngineReport(NamedTuple):
    """An engine at one moment.

    Args:
        time: the moment, `time.monotonic()` seconds.
        slots: sequences that can be computed at once.
        running: sequences that are computed.
        waiting: the first of those in line.
        graphs: the graphs that compute tokens.
    """

    time: float
    slots: int
    running: list[SequenceReport]
    waiting: list[SequenceReport]
    graphs: list[GraphReport]


def sequence_reports(sequences: Iterable[Sequence], most: int | None = None) -> list[SequenceReport]:
    """What there is to say of sequences.

    Args:
        sequences: in the order of the result.
        most: how many of them, from the first on; None for all.
    """
    return [
        SequenceReport(
            request_id=sequence.request_id,
            completion=sequence.index,
            slot=sequence.slot,
            prompt_tokens=len(sequence.prompt_ids),
            cached_tokens=sequence.num_cached_tokens or 0,
            computed_tokens=sequence.num_computed,
            output_tokens=len(sequence.output_ids),
            max_tokens=sequence.max_tokens,
            blocks=len(sequence.block_ids),
            arrival=sequence.metrics.arrival_time,
        )
        for sequence in islice(sequences, most)
    ]
