"""Measures contestants by turns: in every turn each of them does the same work, one after the other, while the others stand still."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

from benchmarks.peers.contestants import Contestant
from benchmarks.peers.engine import Run
from benchmarks.peers.engine_process import EngineFailed
from benchmarks.peers.workload import Measure

_WARM_UP_TOKENS = 8
"""Generated for each prompt before anything counts, so that what engines do at the first run of a size is done."""


class Process(Protocol):
    """What is needed of an `EngineProcess`."""

    about: dict[str, Any]

    def run(self, prompts: list[list[int]], output_len: int) -> Run: ...

    def cpu_seconds(self) -> float: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Record:
    """What came of one contestant.

    Args:
        kind, group, weights: as in `Contestant`.
        about: what the engine said of itself.
        failed: why there are no results, or no more.
        load_seconds: until it was ready.
        values: by measure, one for each turn, None where there is none; in the measure's unit.
        elsewhere: by measure, for each turn: CPU seconds per second that everything else on the machine took.
        tokens: generated in the first turn of the first measure of one request, to compare what engines compute.
    """

    kind: str
    group: str
    weights: str
    about: dict[str, Any] | None = None
    failed: str | None = None
    load_seconds: float = 0.0
    values: dict[str, list[float | None]] = field(default_factory=dict[str, list[float | None]])
    elsewhere: dict[str, list[float | None]] = field(default_factory=dict[str, list[float | None]])
    tokens: list[int] = field(default_factory=list[int])

    def json(self) -> dict[str, Any]:
        """What JSON can hold, with figures short."""

        def short(columns: Mapping[str, list[float | None]]) -> dict[str, list[float | None]]:
            return {name: [value if value is None else round(value, 3) for value in column] for name, column in columns.items()}

        rounded = {"load_seconds": round(self.load_seconds, 1), "values": short(self.values), "elsewhere": short(self.elsewhere)}
        return asdict(self) | rounded


def compare(
    contestants: Sequence[Contestant],
    measures: Sequence[Measure],
    repeats: int,
    start: Callable[[Contestant], Process],
    busy_seconds: Callable[[], float],
) -> dict[str, Record]:
    """Measure contestants that fit in memory together.

    Args:
        contestants: who.
        measures: what.
        repeats: how often; in each of them a measure has as many turns as it says.
        start: loads an engine; EngineFailed where it cannot.
        busy_seconds: as `machine.busy_seconds`.

    Returns:
        A record by the contestant's name, in their order; of those that failed too.
    """
    records = {contestant.name: Record(contestant.kind.name, contestant.group, contestant.weights) for contestant in contestants}
    running: dict[str, Process] = {}

    def attempt(name: str, what: str, action: Callable[[], None]) -> None:
        """Do something with an engine. One that fails is out, and the others go on."""
        began = time.monotonic()
        try:
            action()
        except EngineFailed as error:
            records[name].failed = str(error)
            if name in running:
                running.pop(name).close()
            what += f": failed, {error}"
        _say(f"{time.monotonic() - began:6.1f} s  {name}: {what}")

    def load(contestant: Contestant) -> None:
        began = time.monotonic()
        process = start(contestant)
        running[contestant.name], record = process, records[contestant.name]
        record.about, record.load_seconds = process.about, time.monotonic() - began

    def warm_up(name: str, measure: Measure) -> None:
        running[name].run(measure.prompts(-1), min(measure.output_len, _WARM_UP_TOKENS))

    def measure_once(name: str, measure: Measure, turn: int) -> None:
        process, record = running[name], records[name]
        # It stood still, and its weights have left the processor's caches.
        process.run([measure.prompts(-2)[0][:16]], 2)
        busy, own, began = busy_seconds(), process.cpu_seconds(), time.monotonic()
        run = process.run(measure.prompts(turn), measure.output_len)
        took = time.monotonic() - began
        others = busy_seconds() - busy - (process.cpu_seconds() - own)
        if any(len(tokens) != measure.output_len for tokens in run.tokens):
            raise EngineFailed(f"{measure.name}: it generated {[len(tokens) for tokens in run.tokens]} tokens, not {measure.output_len}")
        record.values[measure.name][turn] = measure.value(run.seconds, run.first_seconds)
        record.elsewhere[measure.name][turn] = max(0.0, others / took)
        if measure.requests == 1 and measure.output_len > 1 and not record.tokens:
            record.tokens = run.tokens[0]

    try:
        for contestant in contestants:
            attempt(contestant.name, "loaded", partial(load, contestant))
        for measure in measures:
            for record in records.values():
                record.values[measure.name] = [None] * (repeats * measure.turns)
                record.elsewhere[measure.name] = [None] * (repeats * measure.turns)
            for name in list(running):
                attempt(name, f"{measure.name}, warm", partial(warm_up, name, measure))
        for repeat in range(repeats):
            for measure in measures:
                for turn in range(repeat * measure.turns, (repeat + 1) * measure.turns):
                    for name in _rotated(list(running), turn):
                        attempt(name, measure.name, partial(measure_once, name, measure, turn))
    finally:
        for process in running.values():
            process.close()
    return records


def _rotated(names: list[str], by: int) -> list[str]:
    """Who is first changes, so that nobody always comes after the same other."""
    at = by % len(names) if names else 0
    return names[at:] + names[:at]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
