"""What the last iterations did, and where host and device time went, in rings of fixed size, for chrome://tracing and Perfetto. No JAX."""

from __future__ import annotations

from collections import deque
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


class DeviceRecord(NamedTuple):
    """What is known on the host of the device's time for one iteration.

    It begins when the device could begin, and ends when the host saw the tokens. So an iteration seems longer by as much as the host
    came late, having had other things to do, and its first graph may run while the host still prepares its second. Where the host waited
    for the tokens, both of this iteration and of the one before (`StepRecord.wait` of the turn after each), it is what the device took,
    and the way of the tokens to the host. The times of iterations do not overlap, so their sum is never more than the time that passed.

    Args:
        step: number of the iteration.
        start: when it was dispatched, or the tokens of the one before were seen where that was later, `time.perf_counter()` seconds.
        seconds: from then until its own tokens were seen.
        graphs: names of its graphs.
    """

    step: int
    start: float
    seconds: float
    graphs: tuple[str, ...]


class Recorded(NamedTuple):
    """What a trace holds, oldest first."""

    steps: list[StepRecord]
    device: list[DeviceRecord]

    def chrome(self) -> dict[str, Any]:
        """The records as an object in Chrome's trace event format; times are in microseconds."""
        lanes = enumerate(("engine", "device"))
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": lane, "args": {"name": name}} for lane, name in lanes
        ]
        for record in self.steps:
            at = record.start * 1e6
            place = {"pid": 0, "tid": 0}
            phases = {name: getattr(record, name) * 1e6 for name in ("schedule", "prepare", "dispatch", "wait", "process")}
            args = {"tokens": record.tokens, "padding": record.padding, "graphs": record.graphs}
            events.append({"ph": "X", "name": f"step {record.step}", "ts": at, "dur": sum(phases.values()), "args": args, **place})
            for name, duration in phases.items():
                events.append({"ph": "X", "name": name, "ts": at, "dur": duration, **place})
                at += duration
            counters = {"running": record.running, "waiting": record.waiting}
            events.append({"ph": "C", "name": "sequences", "ts": record.start * 1e6, "pid": 0, "args": counters})
            free = {"free": record.free_blocks}
            events.append({"ph": "C", "name": "KV blocks", "ts": record.start * 1e6, "pid": 0, "args": free})
        for run in self.device:
            span = {"ts": run.start * 1e6, "dur": run.seconds * 1e6, "args": {"graphs": run.graphs}}
            events.append({"ph": "X", "name": f"step {run.step}", "pid": 0, "tid": 1, **span})
        return {"traceEvents": events, "displayTimeUnit": "ms"}


class StepTrace:
    """The last records.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int = TRACE_STEPS) -> None:
        self._steps: deque[StepRecord] = deque(maxlen=size)
        self._device: deque[DeviceRecord] = deque(maxlen=size)

    def add(self, record: StepRecord) -> None:
        """Keep a turn's record, in place of the oldest where there are enough."""
        self._steps.append(record)

    def ran(self, record: DeviceRecord) -> None:
        """Keep what is known of an iteration that has been read, likewise."""
        self._device.append(record)

    def recorded(self) -> Recorded:
        """What is kept. Not while another thread adds to it."""
        return Recorded(list(self._steps), list(self._device))
