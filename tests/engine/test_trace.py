"""The step trace: fixed in size, true to what the engine did, and readable by Chrome."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from tests.engine.test_scheduler import Simulation, Sizes
from xlaserve.engine import core as core_module
from xlaserve.engine.trace import DeviceRecord, StepRecord, StepTrace

PHASES = ("schedule", "prepare", "dispatch", "wait", "process")


def record_of(step: int, start: float) -> StepRecord:
    second = 0.125
    return StepRecord(step, start, second, second, second, second, second, 3, 1, ("generate-4-1",), 3, 2, 9)


def test_records_say_what_the_engine_did() -> None:
    simulation = Simulation(Sizes(num_blocks=100, batched=32))
    simulation.add(list(range(50)), most=5, stop=frozenset())
    simulation.add([7], most=5, stop=frozenset())
    simulation.drain()
    (records, runs), stats = simulation.core.trace.recorded(), simulation.core.stats()
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
    assert [(run.step, run.graphs) for run in runs] == [(record.step, record.graphs) for record in records]
    for run, record in zip(runs, records, strict=True):
        assert run.start >= record.start + record.schedule
    for run, later in pairwise(runs):
        assert run.start + run.seconds <= later.start + 1e-9
        assert run.seconds > 0


def test_device_time_lasts_until_the_host_sees_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock moves only where the device is waited for, and for an input of the first iteration."""
    simulation = Simulation(Sizes(num_blocks=100, batched=32))
    simulation.add([7], most=3, stop=frozenset())
    now, fetch = 100.0, core_module._fetch  # pyright: ignore[reportPrivateUsage]

    def slow_fetch(*args: Any) -> Any:
        nonlocal now
        now += 2.0
        return fetch(*args)

    monkeypatch.setattr(core_module.time, "perf_counter", lambda: now)
    monkeypatch.setattr(core_module, "_fetch", slow_fetch)
    simulation.drain()
    steps, runs = simulation.core.trace.recorded()
    # The second is dispatched before the first is read, so it begins where the first ends.
    assert [(run.start, run.seconds) for run in runs] == [(100.0, 2.0), (102.0, 2.0), (104.0, 2.0)]
    assert [step.wait for step in steps] == [0.0, 2.0, 2.0]


def test_the_ring_keeps_the_last() -> None:
    trace = StepTrace(3)
    for step in range(1, 6):
        trace.add(record_of(step, float(step)))
        trace.ran(DeviceRecord(step, float(step), 0.5, ()))
    assert [[record.step for record in records] for records in trace.recorded()] == [[3, 4, 5]] * 2


def test_chrome_reads_it() -> None:
    trace = StepTrace(2)
    trace.add(record_of(1, 2.0))
    trace.ran(DeviceRecord(1, 2.5, 0.25, ("generate-4-1",)))
    content = json.loads(json.dumps(trace.recorded().chrome()))
    spans = [event for event in content["traceEvents"] if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"]) for event in spans[:3]] == [
        ("step 1", 2e6, 625e3),
        ("schedule", 2e6, 125e3),
        ("prepare", 2.125e6, 125e3),
    ]
    assert spans[0]["args"] == {"tokens": 3, "padding": 1, "graphs": ["generate-4-1"]}
    (lane,) = (event["tid"] for event in content["traceEvents"] if event["ph"] == "M" and event["args"] == {"name": "device"})
    (run,) = (event for event in spans if event["tid"] == lane)
    assert (run["name"], run["ts"], run["dur"], run["args"]) == ("step 1", 2.5e6, 250e3, {"graphs": ["generate-4-1"]})
    assert lane not in {event["tid"] for event in spans[:6]}
    counters = {event["name"]: event["args"] for event in content["traceEvents"] if event["ph"] == "C"}
    assert counters == {"sequences": {"running": 3, "waiting": 2}, "KV blocks": {"free": 9}}
