"""Two hundred clients that ask for the longest answers and give up: the next request is answered at once, and nothing is left of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.storm import WAVES, run
from tests.server.served import COMMAND, FLAGS


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_two_hundred_clients_give_up(tiny_model: Callable[[str], Path], report: Callable[[str], None]) -> None:
    flags = [*FLAGS, "--log-level=warning"]
    storm = run(str(tiny_model("llama3")), flags, clients=200, tokens=250, patience=0.5, readers=8, command=COMMAND)
    print(storm.table())
    assert len(storm.checks) == 11
    assert storm.failures == []
    report(
        f"storm: {WAVES} waves of 200 clients with 0.5 s of patience; a normal request takes {storm.quiet:.2f} s before and at most "
        f"{max(storm.after):.2f} s right after; KV usage is 0 {max(storm.freed):.2f} s after; afterwards MiB "
        + ", ".join(f"{name} {values[1] / 1024:.1f} -> {values[-1] / 1024:.1f}" for name, values in storm.memory.items())
    )
