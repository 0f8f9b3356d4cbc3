"""What the last iterations did and where their host time went, in a ring of fixed size, for chrome://tracing and Perfetto. No JAX."""

from __future__ import annotations

from typing import Any, NamedTuple

TRACE_STEPS = 4096


class StepRecord(NamedTuple):
    """One turn of the engine: it decides and starts an iteration, and reads the one before it.

    Args:
        step: number of the iteration, from 1.
        start: when the turn began, `time.perf_counter()` seconds.
        schedule: seconds spent on deciding.
        prepare: seconds spent on the graphs' inputs.
        dispatch: seconds spent on starting the graphs.
        wait: seconds spent on waiting for the tokens of the iteration before.
        process: seconds spent on those tokens.
        tokens: tokens that the graphs compute for sequences.
        padding: token places in the graphs that are padding.
        graphs: names of the graphs.
        running: sequences that run.
        waiting: sequences in line.
        free_blocks: KV blocks that are free.
    """

    step: int
    start: float
    schedule: float
    prepare: float
    dispatch: float
    wait: float
    process: float
    tokens: int
    padding: int
    graphs: tuple[str, ...]
    running: int
    waiting: int
    free_blocks: int


class StepTrace:
    """The last records.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int = TRACE_STEPS) -> None:
        self._ring: list[StepRecord | None] = [None] * size
        self._count = 0

    def add(self, record: StepRecord) -> None:
        """Keep a record, in place of the oldest where the ring is full."""
        self._ring[self._count % len(self._ring)] = record
        self._count += 1

    def records(self) -> list[StepRecord]:
        """What is kept, oldest first. May be called from any thread."""
        return sorted((record for record in self._ring.copy() if record is not None), key=lambda record: record.start)

    def chrome(self) -> dict[str, Any]:
        """The records as an object in Chrome's trace event format; times are in microseconds."""
        events: list[dict[str, Any]] = [{"ph": "M", "name": "thread_name", "pid": 0, "tid": 0, "args": {"name": "engine"}}]
        for record in self.records():
            at = record.start * 1e6
            place = {"pid": 0, "tid": 0}
            phases = {name: getattr(record, name) * 1e6 for name in ("schedule", "prepare", "dispatch", "wait", "process")}
            args = {"tokens": record.tokens, "padding": record.padding, "graphs": list(record.graphs)}
            events.append({"ph": "X", "name": f"step {record.step}", "ts": at, "dur": sum(phases.values()), "args": args, **place})
            for name, duration in phases.items():
                events.append({"ph": "X", "name": name, "ts": at, "dur": duration, **place})
                at += duration
            counters = {"running": record.running, "waiting": record.waiting}
            events.append({"ph": "C", "name": "sequences", "ts": record.start * 1e6, "pid": 0, "args": counters})
            free = {"free": record.free_blocks}
            events.append({"ph": "C", "name": "KV blocks", "ts": record.start * 1e6, "pid": 0, "args": free})
        return {"traceEvents": events, "displayTimeUnit": "ms"}
