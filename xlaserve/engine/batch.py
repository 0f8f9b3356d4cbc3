"""Turns a scheduling decision into the int32 arrays that graphs take. No JAX.

What stays the same for the life of a sequence is written once, when it gets its slot; a step copies rows and fills in what moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlaserve.buckets.ladder import Bucket
from xlaserve.buckets.layout import BANNED_AT, TOKENS_AT, Header, row_width, table_at
from xlaserve.engine.decision import ContextStep, GenerateStep
from xlaserve.engine.sequence import Sequence
from xlaserve.paged.block_tables import BlockTables

Batch = NDArray[np.int32]
Mask = NDArray[np.int32]


class _Generating(NamedTuple):
    """What stays the same from one generate step to the next while the same sequences generate in the same slots.

    Args:
        sequences, bucket: of the step.
        slots: of each row, integers.
        prompts: int32, prompt tokens of each row.
        template: the batch without what moves.
        changing: rows that need a look at every step.
    """

    sequences: tuple[Sequence, ...]
    bucket: Bucket
    slots: NDArray[np.intp]
    prompts: NDArray[np.int32]
    template: Batch
    changing: list[int]


class BatchBuilder:
    """Builds the input of every step.

    Args:
        tables: block tables by slot.
        max_num_seqs: number of slots; the place after the last is the spare one.
    """

    def __init__(self, tables: BlockTables, max_num_seqs: int) -> None:
        self._tables = tables
        self._spare = max_num_seqs
        self._constant = np.zeros((max_num_seqs, TOKENS_AT), np.int32)
        self._owner: list[Sequence | None] = [None] * max_num_seqs
        self._seated: list[Sequence] = []
        self._last: _Generating | None = None

    def generate(self, step: GenerateStep) -> Batch:
        """Input of a token-generation graph."""
        last = self._last
        if last is None or last.sequences != step.sequences or last.bucket != step.bucket:
            last = self._last = self._generating(step)
        batch = last.template.copy()
        count = len(step.sequences)
        starts = np.array(step.starts, np.int32)
        drawn = starts + 1 - last.prompts
        batch[:count, Header.START] = starts
        batch[:count, Header.PLACE] = drawn
        batch[:count, table_at(step.bucket) :] = self._tables.rows(last.slots, step.bucket.width)
        for row in last.changing:
            sequence = step.sequences[row]
            _ban_stops(batch[row], sequence, int(drawn[row]))
            if sequence.group is not None:
                batch[row, Header.TOKEN] = sequence.output_ids[-1] + 1
        return batch

    def _generating(self, step: GenerateStep) -> _Generating:
        slots = np.array([self._seat(sequence) for sequence in step.sequences])
        template = empty_batch(step.bucket, self._spare)
        template[: len(slots), :TOKENS_AT] = self._constant[slots]
        prompts = np.array([len(sequence.prompt_ids) for sequence in step.sequences], np.int32)
        changing = [row for row, sequence in enumerate(step.sequences) if sequence.params.min_tokens or sequence.group is not None]
        return _Generating(step.sequences, step.bucket, slots, prompts, template, changing)

    def context(self, step: ContextStep) -> Batch:
        """Input of a context-encoding graph."""
        batch = empty_batch(step.bucket, self._spare)
        for row, chunk in zip(batch, step.chunks, strict=False):
            slot = self._seat(chunk.sequence)
            if chunk.samples:
                row[:TOKENS_AT] = self._constant[slot]
                row[Header.PLACE] = chunk.sequence.num_drawn - 1
                _ban_stops(row, chunk.sequence, chunk.sequence.num_drawn - 1)
            # Where nothing is to be sampled yet, the row samples as padding does: greedily, as that costs least, into the spare place.
            row[Header.START], row[Header.LENGTH] = chunk.start, chunk.length
            end = chunk.start + chunk.length
            if chunk.sequence.scores_prompt and chunk.start < len(chunk.sequence.prompt_ids) - 1:
                row[Header.PROMPT_LOGPROBS] = 1 + (chunk.sequence.params.prompt_logprobs or 0)
                row[Header.NEXT_TOKEN] = chunk.sequence.prompt_ids[end] if end < len(chunk.sequence.prompt_ids) else 0
            row[TOKENS_AT : TOKENS_AT + chunk.length] = chunk.sequence.tokens(chunk.start, chunk.start + chunk.length)
            row[table_at(step.bucket) :] = self._tables.rows([slot], step.bucket.width)[0]
        return batch

    def take_seated(self) -> list[Sequence]:
        """The sequences that got their slots in batches built since the last call and want the device to keep more than their tokens.

        Their slots must be loaded before those batches run.
        """
        seated, self._seated = self._seated, []
        return seated

    def reseat(self, sequence: Sequence) -> None:
        """What the device keeps of a sequence is out of date: it got tokens that were not sampled there. None may be in flight."""
        if sequence.slot is not None and self._owner[sequence.slot] is sequence:
            self._owner[sequence.slot] = None

    def forget(self) -> None:
        """The device keeps nothing of any slot any more."""
        self._owner = [None] * len(self._owner)

    def _seat(self, sequence: Sequence) -> int:
        """The slot of a sequence, its constant fields written there."""
        slot = sequence.slot
        assert slot is not None
        if self._owner[slot] is not sequence:
            self._owner[slot] = sequence
            self._last = None
            row, params = self._constant[slot], sequence.params
            row[:] = 0
            row[BANNED_AT:] = -1
            row[Header.SLOT] = slot
            row[Header.LENGTH] = 1
            row[Header.TEMPERATURE] = _bits(0.0 if params.greedy else params.temperature)
            row[Header.TOP_K] = max(params.top_k, 0)
            row[Header.TOP_P] = _bits(params.top_p)
            row[Header.MIN_P] = _bits(params.min_p)
            row[[Header.SEED_LOW, Header.SEED_HIGH]] = np.array([sequence.seed], np.uint64).view(np.int32)
            row[Header.PRESENCE] = _bits(params.presence_penalty)
            row[Header.FREQUENCY] = _bits(params.frequency_penalty)
            row[Header.REPETITION] = _bits(params.repetition_penalty)
            row[Header.BIASED] = params.biased
            row[Header.WORDED] = bool(sequence.bad_words)
            row[Header.STRUCTURED] = sequence.structure is not None
            row[Header.LOGPROBS] = 0 if params.logprobs is None else 1 + params.logprobs
            if params.penalized or params.biased or sequence.bad_words:
                self._seated.append(sequence)
        return slot


def structured_rows(step: ContextStep | GenerateStep) -> dict[int, Sequence]:
    """The rows that sample a token which their form has a say in."""
    if isinstance(step, GenerateStep):
        return {row: sequence for row, sequence in enumerate(step.sequences) if sequence.structure is not None}
    return {row: chunk.sequence for row, chunk in enumerate(step.chunks) if chunk.samples and chunk.sequence.structure is not None}


def mask_of(rows: Mapping[int, Sequence], bucket: Bucket) -> Mask | None:
    """Which tokens each row may choose, int32 `[rows, mask width]`; None where every row may choose any."""
    if not rows:
        return None
    structures = {row: sequence.structure for row, sequence in rows.items() if sequence.structure is not None}
    mask = np.full((bucket.rows, len(next(iter(structures.values())).mask)), -1, np.int32)
    for row, structure in structures.items():
        mask[row] = structure.mask
    return mask


def empty_batch(bucket: Bucket, spare_slot: int) -> Batch:
    """A batch of padding: no row has a token. What graphs compute of it all the same is greedy, of the null block, into the spare place."""
    batch = np.zeros((bucket.rows, row_width(bucket)), np.int32)
    batch[:, Header.SLOT] = spare_slot
    batch[:, [Header.TOP_P, Header.REPETITION]] = _bits(1.0)
    batch[:, BANNED_AT:TOKENS_AT] = -1
    return batch


def _ban_stops(row: Batch, sequence: Sequence, drawn: int) -> None:
    """Before `min_tokens` no stop id can be chosen; the ids are repeated over all places, as the graph wants them."""
    if drawn < sequence.params.min_tokens and sequence.stop_ids:
        row[BANNED_AT:TOKENS_AT] = np.resize(np.fromiter(sequence.stop_ids, np.int32), TOKENS_AT - BANNED_AT)


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))
