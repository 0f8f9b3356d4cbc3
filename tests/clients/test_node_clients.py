"""The official JavaScript packages `openai` and `@anthropic-ai/sdk` work unchanged; the checks are in node/clients.mjs."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from tests.clients.node_packages import FOLDER, install, node
from tests.server.live import live_server
from tests.server.saying_engine import SayingEngine

SCRIPT = FOLDER / "clients.mjs"
CHECKS = re.findall(r"^  async (\w+)\(\)", SCRIPT.read_text(), re.MULTILINE)
TIMEOUT = 120.0


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """What each check found, by its name."""
    install()
    engine = SayingEngine()
    with live_server(engine) as live:
        done = subprocess.run([node(), str(SCRIPT), live.url], cwd=FOLDER, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr
    assert not engine.running
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CHECKS)
def test_node(outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name] == "ok", outcomes[name]


def test_the_lock_names_no_registry() -> None:
    lock = (FOLDER / "package-lock.json").read_text()
    assert "resolved" not in lock
    assert "http" not in lock
