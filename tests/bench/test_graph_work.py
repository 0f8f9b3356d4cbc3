"""Bytes and operations of a graph's run, against counts by hand and by brute force; rooflines; batches that a graph may be given."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.fake_device import FakeRunner
from xlaserve.bench.graph_batch import contexts_of, graph_batch
from xlaserve.bench.graph_work import GraphWork, RowWork, Stored, graph_work
from xlaserve.bench.roofline import Roofline
from xlaserve.buckets.ladder import ContextBucket, GenerateBucket
from xlaserve.models.config import Experts, LayerAttention, ModelConfig, Rope

MODEL = ModelConfig(
    family="llama",
    vocab_size=100,
    hidden_size=8,
    intermediate_size=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=3,
    layers=(LayerAttention(None, Rope(1e4)), LayerAttention(4, Rope(1e4))),
    max_position=64,
    norm_eps=1e-5,
    activation="silu",
    tie_embeddings=True,
    query_scale=1.0,
)
PARAMETERS = {
    "model.embed_tokens.weight": Stored((100, 8), 4),
    "model.layers.0.mlp.down_proj.weight": Stored((8, 16), 1),
    "model.layers.0.mlp.down_proj.weight_scale": Stored((8,), 4),
    "model.norm.weight": Stored((8,), 4),
}


def test_a_generated_token_by_hand() -> None:
    work = graph_work(MODEL, PARAMETERS, 4, [RowWork(10, 1)])
    # The table's row of the token, the table for the logits, an int8 matrix with its scales, a norm.
    assert work.weight_bytes == 8 * 4 + 800 * 4 + 128 + 32 + 32
    assert work.linear_flops == 2 * 128 + 2 * 800
    # Keys and values of 10 tokens in one layer and, in a window of 4, of 3 tokens in the other.
    token = 2 * 2 * 3 * 4
    assert work.kv_read_bytes == (10 + 3) * token
    assert work.kv_written_bytes == 2 * token
    assert work.logit_bytes == 400
    assert work.attention_flops == 4 * 4 * 3 * (11 + 4)
    assert work.bytes == work.weight_bytes + work.kv_read_bytes + work.kv_written_bytes + work.logit_bytes
    assert work.flops == work.linear_flops + work.attention_flops


def test_experts_count_where_they_are_chosen() -> None:
    """One token meets those that it chooses; many meet nearly all, and each computes with its own."""
    model = replace(MODEL, experts=Experts(count=8, per_token=2, width=5, normalized=True))
    stack = {"model.layers.0.mlp.experts.down_proj.weight": Stored((8, 8, 5), 2)}
    one = graph_work(model, stack, 4, [RowWork(10, 1)])
    assert (one.weight_bytes, one.linear_flops) == (2 * 8 * 5 * 2, 2 * 2 * 8 * 5)
    two = graph_work(model, stack, 4, [RowWork(10, 1), RowWork(3, 1)])
    assert (two.weight_bytes, two.linear_flops) == (round(3.5 * 8 * 5 * 2), 2 * one.linear_flops)
    many = graph_work(model, stack, 4, [RowWork(0, 100)])
    assert (many.weight_bytes, many.linear_flops) == (8 * 8 * 5 * 2, 100 * one.linear_flops)


def test_logits_are_made_for_one_token_of_each_row() -> None:
    work = graph_work(MODEL, PARAMETERS, 4, [RowWork(0, 5), RowWork(0, 5)])
    assert work.tokens == 10
    assert work.linear_flops == 10 * 2 * 128 + 2 * 2 * 800
    assert work.logit_bytes == 2 * 400
    assert work.kv_read_bytes == 0  # what a chunk computes it has at hand


def test_the_last_layer_finishes_one_token_of_each_row() -> None:
    last = {
        "model.layers.1.self_attn.qkv_proj.weight": Stored((24, 8), 4),
        "model.layers.1.self_attn.o_proj.weight": Stored((8, 12), 4),
        "model.layers.1.mlp.down_proj.weight": Stored((8, 16), 4),
    }
    work = graph_work(MODEL, last, 4, [RowWork(0, 5), RowWork(0, 5)])
    assert work.linear_flops == 10 * 2 * 24 * 8 + 2 * 2 * (8 * 12 + 8 * 16)
    assert work.weight_bytes == 4 * (24 * 8 + 8 * 12 + 8 * 16)
    # 15 pairs of a query and a key that it meets in the first layer, and 4 in the window of the second.
    assert work.attention_flops == 2 * 4 * 4 * 3 * (15 + 4)


def test_a_separate_head_is_read_instead_of_the_table() -> None:
    head = {**PARAMETERS, "lm_head.weight": Stored((100, 8), 2)}
    work = graph_work(replace(MODEL, tie_embeddings=False), head, 4, [RowWork(0, 3)])
    assert work.weight_bytes == 3 * 8 * 4 + 1600 + 128 + 32 + 32
    assert work.linear_flops == 3 * 2 * 128 + 2 * 800


def test_weights_are_read_once_and_kv_for_each_row() -> None:
    one, four = (graph_work(MODEL, PARAMETERS, 4, [RowWork(20, 1)] * rows) for rows in (1, 4))
    assert four.weight_bytes - one.weight_bytes == 3 * 8 * 4
    assert (four.kv_read_bytes, four.kv_written_bytes, four.flops) == (4 * one.kv_read_bytes, 4 * one.kv_written_bytes, 4 * one.flops)


@given(st.integers(0, 50), st.integers(1, 30), st.one_of(st.none(), st.integers(1, 40)))
def test_pairs_of_queries_and_keys_are_counted_right(start: int, length: int, window: int | None) -> None:
    # In the last layer, of a window of 1, one query meets itself.
    model = replace(MODEL, layers=(LayerAttention(window, Rope(1e4)), LayerAttention(1, Rope(1e4))))
    work = graph_work(model, {}, 4, [RowWork(start, length)])
    seen = {(query, key) for query in range(start, start + length) for key in range(query + 1) if window is None or key > query - window}
    assert work.attention_flops == 4 * 4 * 3 * (len(seen) + 1)
    cached = {key for _, key in seen if key < start}
    assert work.kv_read_bytes == len(cached) * 2 * 2 * 3 * 4


def test_rooflines_by_hand() -> None:
    work = GraphWork(1, 1000, 0, 0, 0, 500, 0)
    line = Roofline(work, seconds=2.0, bandwidth=1000.0, flop_rate=2000.0)
    assert (line.byte_rate, line.flops_per_second) == (500, 250)
    assert (line.bandwidth_share, line.flop_share) == (0.5, 0.125)
    assert (line.binds, line.least_seconds, line.share) == ("bandwidth", 1.0, 0.5)
    assert Roofline(work._replace(linear_flops=8000), 8.0, 1000.0, 2000.0).binds == "compute"
    assert line.as_json()["roofline_share"] == 0.5


GENERATE, CONTEXT = GenerateBucket(4, 8), ContextBucket(2, 32, 8)


def test_contexts_that_graphs_hold() -> None:
    assert contexts_of(GENERATE, (1, 100, 128, 129), 16) == [1, 100, 128]
    assert contexts_of(CONTEXT, (1, 40, 100, 128, 500), 16) == [32, 96, 128]


@pytest.mark.parametrize(("bucket", "context"), [(GENERATE, 100), (GENERATE, 1), (CONTEXT, 32), (CONTEXT, 96)])
def test_batches_are_as_the_engine_makes_them(bucket: GenerateBucket | ContextBucket, context: int) -> None:
    made = graph_batch(bucket, context, block_size=16, num_blocks=40, spare_slot=8, vocab_size=97, rng=np.random.default_rng(1))
    assert made is not None
    batch, rows = made
    length = 32 if isinstance(bucket, ContextBucket) else 1
    assert rows == [RowWork(context - length, length)] * bucket.rows
    tables = batch[:, -bucket.width :][:, : math.ceil(context / 16)]
    assert tables.min() > 0
    assert len(set(tables.ravel().tolist())) == tables.size
    runner = FakeRunner(40, 16, 8)  # it refuses what no engine would send
    runner._last[:] = 5
    runner.run(bucket, batch)


def test_too_few_blocks_give_no_batch() -> None:
    options = {"block_size": 16, "spare_slot": 8, "vocab_size": 97, "rng": np.random.default_rng(1)}
    assert graph_batch(GENERATE, 128, num_blocks=32, **options) is None
    assert graph_batch(GENERATE, 128, num_blocks=33, **options) is not None
