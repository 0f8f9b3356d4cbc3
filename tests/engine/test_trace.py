"""The step trace: fixed in size, true to what the engine did, and readable by Chrome."""

from __future__ import annotations

import json
from itertools import pairwise

from tests.engine.test_scheduler import Simulation, Sizes
from xlaserve.engine.trace import StepRecord, StepTrace

PHASES = ("schedule", "prepare", "dispatch", "wait", "process")


def record_of(step: int, start: float) -> StepRecord:
    second = 0.125
    return StepRecord(step, start, second, second, second, second, second, 3, 1, ("generate-4-1",), 3, 2, 9)


def test_records_say_what_the_engine_did() -> None:
    simulation = Simulation(Sizes(num_blocks=100, batched=32))
    simulation.add(list(range(50)), most=5, stop=frozenset())
    simulation.add([7], most=5, stop=frozenset())
    simulation.drain()
    records, stats = simulation.core.trace.records(), simulation.core.stats()
    assert [record.step for record in records] == list(range(1, stats.steps + 1))
    assert sum(record.tokens for record in records) == stats.scheduled_tokens
    assert sum(record.padding for record in records) == stats.padded_tokens
    assert records[0].graphs[0].startswith("context-")
    assert records[-1].graphs[0].startswith("generate-")
    assert max(record.running for record in records) == 2
    assert min(record.free_blocks for record in records) < 99
    starts = [record.start for record in records]
    assert starts == sorted(starts)
    for record, later in pairwise(records):
        assert record.start + sum(getattr(record, phase) for phase in PHASES) <= later.start
        assert min(getattr(record, phase) for phase in PHASES) >= 0


def test_the_ring_keeps_the_last() -> None:
    trace = StepTrace(3)
    for step in range(1, 6):
        trace.add(record_of(step, float(step)))
    assert [record.step for record in trace.records()] == [3, 4, 5]


def test_chrome_reads_it() -> None:
    trace = StepTrace(2)
    trace.add(record_of(1, 2.0))
    content = json.loads(json.dumps(trace.chrome()))
    spans = [event for event in content["traceEvents"] if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"]) for event in spans[:3]] == [
        ("step 1", 2e6, 625e3),
        ("schedule", 2e6, 125e3),
        ("prepare", 2.125e6, 125e3),
    ]
    assert spans[0]["args"] == {"tokens": 3, "padding": 1, "graphs": ["generate-4-1"]}
    counters = {event["name"]: event["args"] for event in content["traceEvents"] if event["ph"] == "C"}
    assert counters == {"sequences": {"running": 3, "waiting": 2}, "KV blocks": {"free": 9}}
