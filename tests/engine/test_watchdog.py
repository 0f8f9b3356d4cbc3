"""The watchdog: an engine with work that gets nowhere is found, and nothing else."""

from __future__ import annotations

from xlaserve.engine.watchdog import Watchdog


def test_a_stall_is_reported_once_and_forgotten_with_progress() -> None:
    dog = Watchdog(10)
    assert not dog.look(0, has_work=True, progress=1)
    assert not dog.look(9, has_work=True, progress=1)
    assert dog.look(10, has_work=True, progress=1)
    assert dog.stalled
    assert not dog.look(30, has_work=True, progress=1), "said once"
    assert dog.stalled
    assert not dog.look(31, has_work=True, progress=2)
    assert not dog.stalled
    assert dog.look(41, has_work=True, progress=2)
    assert dog.stalls == 2


def test_an_idle_engine_does_not_stall() -> None:
    dog = Watchdog(10)
    for now in range(0, 100, 5):
        assert not dog.look(now, has_work=False, progress=1)
    assert not dog.look(103, has_work=True, progress=1), "the work came at most eight seconds ago"
    assert not dog.stalled


def test_a_slow_engine_does_not_stall() -> None:
    dog = Watchdog(10)
    assert not any(dog.look(9 * i, has_work=True, progress=i) for i in range(20))
    assert dog.stalls == 0
