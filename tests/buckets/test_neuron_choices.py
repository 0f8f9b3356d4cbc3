"""Graphs with the Neuron platform's choices compute what graphs with the CPU's choices compute, for every family and kind of request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from tests.tooling.tiny_models import FAMILIES, tiny_config
from xlaserve.buckets.graphs import GraphSpec, make_step
from xlaserve.buckets.ladder import Bucket, ContextBucket, GenerateBucket
from xlaserve.buckets.layout import BANNED_AT, TOKENS_AT, Header, mask_width, table_at
from xlaserve.engine.batch import empty_batch
from xlaserve.models.registry import model_config
from xlaserve.platforms.cpu import CPU
from xlaserve.platforms.neuron import NEURON
from xlaserve.platforms.platform import Platform
from xlaserve.sampling.params import MAX_LOGPROBS
from xlaserve.sampling.slot_state import SlotState

ROWS = 3
QUICK: Any = {"xla_backend_optimization_level": 0}
"""They run once: compiling takes longer than slow code."""


def spec_for(family: str, platform: Platform) -> GraphSpec:
    model = model_config(tiny_config(family))
    return GraphSpec(
        # One layer of each kind: with and without a window, with each rotary embedding.
        model=replace(model, layers=tuple(dict.fromkeys(model.layers))),
        dtype="float32",
        num_blocks=9,
        block_size=NEURON.block_size,
        max_num_seqs=ROWS,
        attention=platform.attention,
        branches=platform.branches,
        top_k=platform.top_k,
    )


def bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))


def batch_for(bucket: Bucket, lengths: list[int], vocab: int) -> Any:
    """Rows of three kinds: greedy; sampled with everything, of a form; penalized, biased and with bad words and banned ids."""
    rng = np.random.default_rng(3)
    batch = empty_batch(bucket, ROWS)
    batch[:, Header.SLOT] = range(ROWS)
    batch[:, Header.LOGPROBS] = 1 + MAX_LOGPROBS
    batch[1, [Header.TEMPERATURE, Header.TOP_P, Header.MIN_P]] = bits(0.9), bits(0.8), bits(0.02)
    batch[1, [Header.TOP_K, Header.SEED_LOW, Header.PLACE]] = 40, 7, 5
    batch[2, [Header.PRESENCE, Header.FREQUENCY, Header.REPETITION]] = bits(0.5), bits(0.3), bits(1.3)
    batch[2, [Header.BIASED, Header.WORDED]] = 1
    batch[1, Header.STRUCTURED] = 1
    batch[2, BANNED_AT:TOKENS_AT] = rng.integers(0, vocab, TOKENS_AT - BANNED_AT)
    for row, length in enumerate(lengths):
        if isinstance(bucket, ContextBucket):
            batch[row, Header.LENGTH] = length
            batch[row, TOKENS_AT : TOKENS_AT + length] = rng.integers(0, vocab, length)
        else:
            batch[row, Header.START] = length
        batch[row, table_at(bucket) :] = range(1 + row * bucket.width, 1 + (row + 1) * bucket.width)
    return batch


def state_for(spec: GraphSpec) -> SlotState:
    rng = np.random.default_rng(4)
    vocab = spec.model.vocab_size

    def fill(table: Any) -> Any:
        if table.dtype == np.float32:
            return rng.normal(0, 1, table.shape).astype(np.float32)
        return rng.integers(0, min(vocab, 4) if table.shape[1:] == (vocab,) else vocab, table.shape).astype(np.int32)

    return SlotState(*(fill(table) for table in spec.state()))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_tokens_scores_and_cache(family: str) -> None:
    rng = np.random.default_rng(5)
    neuron, cpu = spec_for(family, NEURON), spec_for(family, CPU)
    params = tuple(rng.normal(0, 0.15, p.shape).astype(np.float32) for p in neuron.parameters().values())
    lengths = [200, 130, 9]
    results: list[Any] = []
    for spec in (neuron, cpu):
        kv, state = tuple(np.zeros(a.shape, np.float32) for a in spec.kv()), state_for(spec)
        outputs: list[Any] = []
        for bucket in (ContextBucket(ROWS, 256, 2), GenerateBucket(ROWS, 2)):
            batch = batch_for(bucket, lengths, spec.model.vocab_size)
            mask = np.full((ROWS, mask_width(spec.model.vocab_size)), -1, np.int32)
            mask[1, ::2] = 0x0F0F0F0F
            step = jax.jit(make_step(spec, bucket)).lower(params, kv, state, batch, mask).compile(QUICK)
            kv, state, output = step(params, kv, state, batch, mask)
            outputs.append(output)
        results.append((outputs, jax.tree.map(np.asarray, kv), jax.tree.map(np.asarray, state)))
    (found, kv, state), (wanted, wanted_kv, wanted_state) = results
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.array_equal(ours.tokens, theirs.tokens)
        ours_scores, scores = np.asarray(ours.scores), np.asarray(theirs.scores)
        ids = slice(2, 2 + MAX_LOGPROBS)
        assert np.array_equal(ours_scores[:, 0], scores[:, 0]), "ranks"
        assert np.array_equal(ours_scores[:, ids], scores[:, ids]), "ids"
        floats = [1, *range(2 + MAX_LOGPROBS, scores.shape[1])]
        np.testing.assert_allclose(ours_scores[:, floats].view(np.float32), scores[:, floats].view(np.float32), atol=1e-4)
        assert ours.prompt_scores is None
    for ours, theirs in zip(kv, wanted_kv, strict=True):
        # Block 0 takes padding, where nobody reads.
        np.testing.assert_allclose(ours[1:], theirs[1:], atol=1e-4)
    for ours, theirs in zip(state, wanted_state, strict=True):
        assert np.array_equal(ours, theirs)


def test_platforms_choose_differently() -> None:
    neuron, cpu = spec_for("llama2", NEURON), spec_for("llama2", CPU)
    assert replace(neuron, attention=cpu.attention, branches=cpu.branches, top_k=cpu.top_k) == cpu
    assert (neuron.attention, neuron.branches, neuron.top_k) != (cpu.attention, cpu.branches, cpu.top_k)
