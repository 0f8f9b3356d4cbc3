"""What the script makes of results: medians over turns, shares of the bandwidth, and whether the goal is met."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.rooflines import before_section, roofline_section


def result(ms: float, share: float = 0.5) -> dict[str, Any]:
    """A run of `xlaserve bench kernels` with one graph, whose weights are 100 MB."""
    line = {
        "graph": "generate-1-64",
        "context": 128,
        "ms": {"median": ms},
        "tokens": 1,
        "weight_bytes": 100_000_000,
        "bytes": 110_000_000,
        "flops": 5_000_000,
        "bytes_per_s": 1e9,
        "bandwidth_share": 0.5,
        "flops_per_s": 1e9,
        "flop_share": 0.1,
        "binds": "bandwidth",
        "roofline_share": 0.5,
        "read_bytes_per_s": {"median": 20e9},
        "weight_share": {"median": share},
    }
    return {
        "metrics": {"graphs": [line]},
        "versions": {"xlaserve": "0", "jax": "0"},
        "machine": {"cpu": "some", "usable_cores": 2},
        "subject": {"model": "tiny", "plan": ["model  tiny", "kernels   cpu-1, avx2"]},
        "date": "2026-01-01T00:00:00",
    }


def found(*runs: dict[str, Any], plain: float | None = None) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """One form, measured so often."""
    return {"float32": {"native": list(runs), "none": [] if plain is None else [result(plain)]}}


@pytest.mark.parametrize(("share", "verdict"), [(0.81, "met"), (0.79, "not met")])
def test_the_goal_is_a_share_of_the_bandwidth_meanwhile(share: float, verdict: str) -> None:
    single = [result(1.0, 0.99), result(8.0, share), result(99.0, 0.12)]
    text = roofline_section(found(result(3.0)), {"float32": single}, "command")
    assert "over groups and 3 turns" in text
    assert f"| float32 | 100 | 8.00 | 12.5 | 20.0 | {share:.0%} | 12% to 99% | {verdict} |" in text


def test_before_and_after() -> None:
    assert "| float32 | generate-1-64 | 128 | 12.00 | 4.00 | 3.0 |" in before_section(
        found(result(3.0), result(4.0), result(5.0), plain=12.0), "command"
    )
    assert "generate-1-64" not in before_section(found(result(3.0)), "command")
