"""Step inputs: every field of a row stands where the graph reads it, and says what the sequence asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xlaserve.buckets.ladder import ContextBucket, GenerateBucket
from xlaserve.buckets.layout import BANNED, BANNED_AT, MAX_EOS_IDS, TOKENS_AT, Header, row_width, table_at, tokens_in_row
from xlaserve.engine.batch import BatchBuilder, empty_batch
from xlaserve.engine.decision import Chunk, ContextStep, GenerateStep
from xlaserve.engine.outputs import RequestMetrics
from xlaserve.engine.sequence import Sequence, Status, stream_seed
from xlaserve.paged.block_tables import BlockTables
from xlaserve.sampling.params import MAX_STOP_TOKEN_IDS, SamplingParams

SLOTS = 4
CONTEXT = ContextBucket(2, 32, 3)
GENERATE = GenerateBucket(4, 3)


def make(slot: int, *, prompt: list[int] | None = None, stop: frozenset[int] = frozenset(), seed: int = 0, **params: Any) -> Sequence:
    return Sequence(
        "r",
        0,
        prompt or [5, 6, 7],
        SamplingParams(**params),
        stop,
        frozenset(),
        seed,
        100,
        RequestMetrics(0.0),
        status=Status.RUNNING,
        slot=slot,
    )


def builder(*blocks: list[int]) -> BatchBuilder:
    tables = BlockTables(SLOTS, 5)
    for slot, held in enumerate(blocks):
        tables.append(slot, 0, held)
    return BatchBuilder(tables, SLOTS)


def as_float(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bits).view(np.float32)


def context(build: BatchBuilder, sequence: Sequence, start: int, length: int) -> np.ndarray:
    samples = start + length == sequence.num_known
    sequence.in_flight += samples
    return build.context(ContextStep(CONTEXT, (Chunk(sequence, start, length, samples),)))


def test_the_layout_has_a_place_for_everything() -> None:
    assert list(Header) == list(range(len(Header)))
    assert MAX_STOP_TOKEN_IDS + MAX_EOS_IDS == BANNED
    assert (len(Header), len(Header) + BANNED) == (BANNED_AT, TOKENS_AT)
    assert (tokens_in_row(CONTEXT), table_at(CONTEXT), row_width(CONTEXT)) == (32, TOKENS_AT + 32, TOKENS_AT + 35)
    assert (tokens_in_row(GENERATE), table_at(GENERATE), row_width(GENERATE)) == (0, TOKENS_AT, TOKENS_AT + 3)


@pytest.mark.parametrize("bucket", [CONTEXT, GENERATE])
def test_padding_is_a_greedy_token_of_the_null_block_into_the_spare_place(bucket: Any) -> None:
    batch = empty_batch(bucket, SLOTS)
    assert batch.shape == (bucket.rows, row_width(bucket))
    assert batch.dtype == np.int32
    assert (batch[:, Header.SLOT] == SLOTS).all()
    assert (batch[:, Header.LENGTH] == 0).all()
    assert (batch[:, Header.START] == 0).all()
    assert (as_float(batch[:, Header.TEMPERATURE]) == 0).all()
    assert (as_float(batch[:, [Header.TOP_P, Header.REPETITION]]) == 1).all()
    assert (batch[:, [Header.PRESENCE, Header.FREQUENCY, Header.BIASED, Header.WORDED]] == 0).all()
    assert (batch[:, BANNED_AT:TOKENS_AT] == -1).all()
    assert (batch[:, TOKENS_AT:] == 0).all()


def test_a_last_chunk() -> None:
    prompt = list(range(100, 140))
    sequence = make(1, prompt=prompt, temperature=0.7, top_k=9, top_p=0.8, min_p=0.25, seed=2**63 + 5)
    row, padding = context(builder([], [8, 9, 3]), sequence, 16, 24)
    assert row[[Header.SLOT, Header.START, Header.LENGTH, Header.TOP_K, Header.PLACE]].tolist() == [1, 16, 24, 9, 0]
    assert as_float(row[[Header.TEMPERATURE, Header.TOP_P, Header.MIN_P]]).tolist() == pytest.approx([0.7, 0.8, 0.25])
    assert row[[Header.SEED_LOW, Header.SEED_HIGH]].view(np.uint32).tolist() == [5, 2**31]
    assert row[TOKENS_AT : TOKENS_AT + 24].tolist() == prompt[16:]
    assert (row[TOKENS_AT + 24 : table_at(CONTEXT)] == 0).all()
    assert row[table_at(CONTEXT) :].tolist() == [8, 9, 3]
    assert np.array_equal(padding, empty_batch(CONTEXT, SLOTS)[1])


def test_a_chunk_that_is_not_the_last_samples_nothing() -> None:
    row = context(builder([4, 5]), make(0, prompt=list(range(60)), temperature=1.0, stop=frozenset({3}), min_tokens=4), 0, 32)[0]
    assert row[Header.SLOT] == SLOTS
    assert as_float(row[[Header.TEMPERATURE]]) == 0
    assert (row[BANNED_AT:TOKENS_AT] == -1).all()


def test_what_changes_logits_is_said_where_a_token_is_sampled() -> None:
    sequence = make(0, prompt=list(range(60)), presence_penalty=0.5, frequency_penalty=-1.0, repetition_penalty=1.5, logit_bias={1: 2})
    sequence.bad_words = ((1, 2),)
    build = builder([4, 5, 6, 7])
    first, last = context(build, sequence, 0, 32)[0], context(build, sequence, 32, 28)[0]
    fields = [Header.PRESENCE, Header.FREQUENCY, Header.REPETITION]
    assert as_float(first[fields]).tolist() == [0, 0, 1]
    assert as_float(last[fields]).tolist() == [0.5, -1, 1.5]
    assert (first[[Header.BIASED, Header.WORDED]].tolist(), last[[Header.BIASED, Header.WORDED]].tolist()) == ([0, 0], [1, 1])


def test_tokens_generated_before_a_preemption_are_computed_again() -> None:
    sequence = make(0, prompt=[1, 2, 3])
    sequence.output_ids = [10, 11, 12]
    assert sequence.tokens(0, 6) == [1, 2, 3, 10, 11, 12]
    assert sequence.tokens(1, 5) == [2, 3, 10, 11]
    assert sequence.tokens(4, 6) == [11, 12]
    assert sequence.tokens(0, 2) == [1, 2]
    row = context(builder([7]), sequence, 0, 6)[0]
    assert row[TOKENS_AT : TOKENS_AT + 6].tolist() == [1, 2, 3, 10, 11, 12]
    assert row[Header.PLACE] == 3, "the next draw is the fourth of the stream"


def test_generate_rows() -> None:
    first, second = make(2, seed=-1 % 2**64, temperature=0.0, top_k=-1), make(0, top_p=0.5)
    first.output_ids, first.in_flight = [9, 9], 2  # one read late, one in this step
    second.output_ids, second.in_flight = [], 2
    batch = builder([4], [], [6, 7]).generate(GenerateStep(GENERATE, (first, second), (5, 3)))
    assert batch[:, Header.SLOT].tolist() == [2, 0, SLOTS, SLOTS]
    assert batch[:, Header.START].tolist() == [5, 3, 0, 0]
    assert batch[:, Header.LENGTH].tolist() == [1, 1, 0, 0]
    assert batch[:, Header.PLACE].tolist() == [3, 1, 0, 0]
    assert batch[:, Header.TOP_K].tolist() == [0, 0, 0, 0]
    assert batch[0, [Header.SEED_LOW, Header.SEED_HIGH]].tolist() == [-1, -1]
    assert as_float(batch[:, Header.TOP_P]).tolist() == [1, 0.5, 1, 1]
    assert batch[:, TOKENS_AT:].tolist() == [[6, 7, 0], [4, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_stop_ids_are_banned_until_min_tokens() -> None:
    sequence = make(0, stop=frozenset({3, 9}), min_tokens=2)
    build = builder([4])
    for drawn, banned in ((0, {3, 9}), (1, {3, 9}), (2, {-1}), (3, {-1})):
        sequence.output_ids, sequence.in_flight = [1] * drawn, 1
        row = build.generate(GenerateStep(GENERATE, (sequence,), (drawn + 2,)))[0]
        assert set(row[BANNED_AT:TOKENS_AT].tolist()) == banned, drawn
    sequence.output_ids, sequence.in_flight = [], 0
    assert set(context(build, sequence, 0, 3)[0][BANNED_AT:TOKENS_AT].tolist()) == {3, 9}


def test_every_stop_id_that_is_allowed_has_a_place() -> None:
    stop = frozenset(range(100, 100 + BANNED))
    sequence = make(0, stop=stop, min_tokens=2)
    sequence.in_flight = 1
    row = builder([4]).generate(GenerateStep(GENERATE, (sequence,), (3,)))[0]
    assert frozenset(row[BANNED_AT:TOKENS_AT].tolist()) == stop


def test_a_slot_forgets_its_last_owner() -> None:
    build = builder([4])
    context(build, make(0, temperature=1.5, top_k=7, seed=99, stop=frozenset({1}), min_tokens=9), 0, 3)
    row = context(build, make(0, temperature=0.0), 0, 3)[0]
    assert row[[Header.TOP_K, Header.SEED_LOW]].tolist() == [0, 0]
    assert as_float(row[[Header.TEMPERATURE]]) == 0
    assert (row[BANNED_AT:TOKENS_AT] == -1).all()


@pytest.mark.parametrize(
    "params", [{"top_k": 2**31 - 1}, {"seed": 2**63 - 1}, {"seed": -(2**63)}, {"top_p": 5e-324}, {"temperature": 1e-300}]
)
def test_no_value_that_is_accepted_breaks_a_step(params: dict[str, Any]) -> None:
    """The engine's thread must not meet a number that does not fit its place."""
    accepted = SamplingParams(**params)
    context(builder([4]), make(0, **{**params, "seed": stream_seed(accepted.seed or 0, 0)}), 0, 3)


def test_streams_of_completions_differ() -> None:
    seeds = {stream_seed(seed, index) for seed in (-(2**63), -1, 0, 1, 2**63 - 1) for index in range(128)}
    assert len(seeds) == 5 * 128
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert stream_seed(7, 0) == 7
    assert stream_seed(7, 3) == stream_seed(7, 3)
