"""Settings of property tests: the same examples on every run and machine, and no time limit per example."""

from __future__ import annotations

from hypothesis import HealthCheck, settings


def examples(count: int) -> settings:
    """Decorator: run a hypothesis test on `count` examples."""
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
