"""The clock of `bench kernels`: a graph's time is the device's, not what the host does before that can begin."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from xlaserve.bench import kernels

_DISPATCH, _RUN = 0.05, 0.01


class Clock:
    """Seconds of a host that dispatches slowly, and of a device that computes one run after the other."""

    def __init__(self) -> None:
        self.now = 0.0
        self.free_at = 0.0  # when the device has done all that it has been given

    def perf_counter(self) -> float:
        return self.now


class Tokens:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        clock.now += _DISPATCH
        clock.free_at = max(clock.free_at, clock.now) + _RUN
        self._done = clock.free_at

    def block_until_ready(self) -> None:
        self._clock.now = max(self._clock.now, self._done)


class Output(NamedTuple):
    tokens: Tokens


class SlowHost:
    """A runner; its device waits for a first run that is long, so that the others lie behind it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def run(self, bucket: Any, batch: Any) -> Output:
        if self._clock.free_at <= self._clock.now:
            self._clock.free_at = self._clock.now + 2.0
        return Output(Tokens(self._clock))


class Reader:
    def rate(self) -> float:
        return 1e9


def test_dispatching_is_not_the_graphs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(kernels, "time", clock)
    runner: Any = SlowHost(clock)
    probe: Any = Reader()
    seconds, reading = kernels._time(runner, None, None, 3, probe)  # type: ignore[arg-type]
    assert seconds.values == pytest.approx((_RUN,) * 3)
    assert reading.values == (1e9,) * 3
