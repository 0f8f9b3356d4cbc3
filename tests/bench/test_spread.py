"""Spreads: the same figures as numpy's, and nothing where there is nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlaserve.bench.spread import Spread, percentile_name
from xlaserve.bench.table import table

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


@given(VALUES, st.floats(0, 100))
def test_figures_are_numpys(values: list[float], percent: float) -> None:
    spread = Spread(tuple(values))
    wanted = [np.mean(values), np.std(values), np.min(values), np.median(values), np.max(values), np.percentile(values, percent)]
    found = [spread.mean, spread.std, spread.low, spread.median, spread.high, spread.percentile(percent)]
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-6)


def test_by_hand() -> None:
    spread = Spread.of([1, 2, 3, 10], scale=10)
    assert (spread.low, spread.median, spread.high, spread.mean) == (10, 25, 100, 40)
    assert spread.percentile(90) == pytest.approx(30 + 0.7 * 70)
    assert spread.text(0) == "25 [10, 100]"
    assert spread.as_json((99.9,)).keys() == {"count", "mean", "std", "min", "median", "max", "p99.9"}


def test_nothing_has_no_figures() -> None:
    assert math.isnan(Spread(()).mean)
    assert Spread(()).as_json((99,)) == {"count": 0, "mean": None, "std": None, "min": None, "median": None, "max": None, "p99": None}
    assert Spread(()).text() == "-"


def test_percentiles_are_named_as_vllm_names_them() -> None:
    assert [percentile_name(percent) for percent in (99.0, 99.9, 50)] == ["p99", "p99.9", "p50"]


def test_tables_stand_in_columns() -> None:
    assert table(("name", "ms"), [("a", "1.0"), ("long name", "100.0")]).splitlines() == [
        "name          ms",
        "a            1.0",
        "long name  100.0",
    ]
