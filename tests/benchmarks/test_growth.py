"""What the storms call growth of a process: what every wave leaves behind, and not what comes once."""

from __future__ import annotations

from benchmarks.soak import growth


def test_what_comes_once_is_no_growth() -> None:
    assert growth([300, 900, 950, 960, 960, 5000, 5000, 5000, 5010, 5010]) == 0


def test_what_every_wave_leaves_behind_is() -> None:
    assert growth([300, 900, 1900, 2900, 3900, 4900, 5900, 6900, 7900, 8900]) == 1000


def test_memory_that_is_given_back_in_between_does_not_hide_it() -> None:
    assert growth([300, 900, 1900, 2900, 3900, 4900, 2900, 3900, 4900, 5900]) == 1000
