"""What an engine says of the moment: who holds which slot, who waits, and how often each graph ran for how many tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import msgspec
import pytest

from tests.engine.test_scheduler import Simulation, Sizes
from xlaserve.buckets.ladder import ContextBucket, make_ladder
from xlaserve.engine.graph_table import GraphOrigin, GraphTable
from xlaserve.engine.report import WAITING_SHOWN, EngineReport


def test_slots_and_queue() -> None:
    simulation = Simulation(Sizes(num_blocks=100, max_num_seqs=2, batched=32))
    for number in range(WAITING_SHOWN + 4):
        simulation.add([*range(20), number], most=9, stop=frozenset())
    for _ in range(3):
        simulation.core.step()
    simulation.core.settle()
    report = simulation.core.report()
    assert report.slots == 2
    assert [sequence.slot for sequence in report.running] == [0, 1]
    first = report.running[0]
    assert (first.prompt_tokens, first.max_tokens) == (21, 30)
    assert first.output_tokens > 0
    assert first.computed_tokens == first.prompt_tokens + first.output_tokens - 1
    assert first.blocks > 0
    assert len(report.waiting) == WAITING_SHOWN
    assert {(sequence.slot, sequence.blocks) for sequence in report.waiting} == {(None, 0)}
    crossed = msgspec.msgpack.decode(msgspec.msgpack.encode(report))
    assert msgspec.convert(crossed, EngineReport) == report


def test_every_run_of_a_graph_counts() -> None:
    simulation = Simulation(Sizes(num_blocks=100, batched=32))
    simulation.add(list(range(50)), most=5, stop=frozenset())
    simulation.add([7], most=5, stop=frozenset())
    simulation.drain()
    report, stats = simulation.core.report(), simulation.core.stats()
    ran = Counter(graph for record in simulation.core.trace.recorded().steps for graph in record.graphs)
    assert {graph.name: graph.runs for graph in report.graphs if graph.runs} == ran
    assert sum(graph.tokens for graph in report.graphs) == stats.scheduled_tokens
    assert sum(graph.padding for graph in report.graphs) == stats.padded_tokens
    assert all(graph.tokens + graph.padding == graph.runs * graph.rows * graph.length for graph in report.graphs)


@pytest.mark.parametrize("measured", [False, True])
def test_where_graphs_come_from(measured: bool) -> None:
    ladder = make_ladder(max_model_len=64, max_num_seqs=2, max_num_batched_tokens=32, block_size=16, static_width=False)
    if measured:
        ladder = replace(ladder, costs=dict.fromkeys(ladder.buckets, 2000000))
    bucket = ladder.context[0]
    table = GraphTable(ladder, {bucket.name: GraphOrigin("compiled", 1.5)})
    table.count(bucket, 5)
    (graph,) = (graph for graph in table.report() if graph.name == bucket.name)
    assert isinstance(bucket, ContextBucket)
    assert (graph.source, graph.seconds, graph.family, graph.context) == ("compiled", 1.5, "context", 64)
    assert graph.run_seconds == (0.002 if measured else None)
    assert (graph.runs, graph.tokens, graph.padding) == (1, 5, bucket.tokens - 5)
    assert len(table.report()) == len(ladder.buckets)
