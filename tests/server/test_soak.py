"""A server under a long storm of clients of all manners: nothing is left behind, and a fixed probe gives the same all along."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.soak import run
from tests.server.served import COMMAND

Tiny = Callable[[str], Path]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_two_thousand_requests_leave_nothing_behind(tiny_model: Tiny, report: Callable[[str], None]) -> None:
    soak = run(str(tiny_model("llama3")), requests=2000, at_once=64, seed=0, command=COMMAND)
    print(soak.table())
    assert len(soak.checks) == 15
    assert soak.failures == []
    assert sum(soak.sent.values()) == 2000
    assert soak.probes == 42
    report(
        f"soak: 2000 requests in {soak.seconds:.1f} s, {soak.metrics.total('num_preemptions_total'):.0f} preemptions; afterwards MiB "
        + ", ".join(f"{name} {values[1] / 1024:.1f} -> {values[-1] / 1024:.1f}" for name, values in soak.memory.items())
        + f"; {soak.probes} probes equal, log probabilities within {soak.difference:.1e}"
    )
