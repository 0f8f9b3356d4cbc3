from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.server.live import Live, live_server
from tests.server.scripted_engine import ScriptedEngine


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def server(engine: ScriptedEngine) -> Generator[Live]:
    with live_server(engine) as live:
        yield live


@pytest.fixture(scope="module")
def shared() -> Generator[Live]:
    """One server for tests that leave it as it was."""
    with live_server(ScriptedEngine()) as live:
        yield live
