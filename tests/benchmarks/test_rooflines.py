"""What the script makes of results: medians over turns, shares of the bandwidth, and whether the goal is met."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.rooflines import bandwidth, before_section, roofline_section


def result(ms: float, rates: dict[str, float]) -> dict[str, Any]:
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
    }
    return {
        "metrics": {"graphs": [line], "bandwidth": {"ways": {name: {"median": rate} for name, rate in rates.items()}}},
        "versions": {"xlaserve": "0", "jax": "0"},
        "machine": {"cpu": "some", "usable_cores": 2},
        "subject": {"model": "tiny", "plan": ["model  tiny", "kernels   cpu-1, avx2"]},
        "date": "2026-01-01T00:00:00",
    }


def found(*milliseconds: float, plain: float | None = None) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """One form, measured so often."""
    native = [result(ms, {"slow": 1e9, "fast": 20e9}) for ms in milliseconds]
    return {"float32": {"native": native, "none": [] if plain is None else [result(plain, {"slow": 1e9})]}}


def test_the_bandwidth_is_that_of_the_best_way() -> None:
    assert bandwidth([result(1, {"slow": 1e9, "fast": 3e9}), result(1, {"slow": 4e9}), result(1, {"fast": 20e9})]) == 4e9


@pytest.mark.parametrize(("ms", "share", "verdict"), [(6.2, "81%", "met"), (6.35, "79%", "not met")])
def test_the_goal_is_a_share_of_it(ms: float, share: str, verdict: str) -> None:
    text = roofline_section(found(1.0, ms, 99.0), "command")
    assert f"| {share} | {verdict} |" in text
    assert f"| float32 | 100 | {ms:.2f} |" in text


def test_before_and_after() -> None:
    assert "| float32 | generate-1-64 | 128 | 12.00 | 4.00 | 3.0 |" in before_section(found(3.0, 4.0, 5.0, plain=12.0), "command")
    assert "generate-1-64" not in before_section(found(3.0), "command")
