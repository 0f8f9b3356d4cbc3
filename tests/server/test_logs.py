"""The log: JSON lines, what of a request is in it, and that prompts are not, unless asked for."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import httpx
import pytest

from tests.server.live import live_server
from tests.server.scripted_engine import ScriptedEngine
from tests.test_cli import ROOT, TIMEOUT, serving
from xlaserve.engine.log_format import JsonFormatter

SECRET = "the-secret-prompt"


def test_json_lines() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("xlaserve.x", logging.ERROR, __file__, 1, "a %s\nb", ("word",), sys.exc_info())
    record.data = {"request_id": "r", "message": "not this one", "odd": {1, 2}}
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["level"], line["logger"], line["message"], line["request_id"]) == ("error", "xlaserve.x", "a word\nb", "r")
    assert line["time"].endswith("+00:00")
    assert "Traceback" in line["exception"]
    assert line["odd"] == "{1, 2}"


def test_serve_logs_json() -> None:
    with serving("--log-format=json", "--enable-log-requests", "tiny") as served:
        assert served.process.stderr is not None
        lines = [json.loads(served.process.stderr.readline())]
        url = lines[0]["message"].split()[3].rstrip(",")
        while "Serving" not in lines[-1]["message"]:
            lines.append(json.loads(served.process.stderr.readline()))
        asked = {"prompt": SECRET, "max_tokens": 3, "temperature": 0.5}
        assert httpx.post(f"{url}/v1/completions", json=asked, headers={"X-Request-Id": "mine"}).status_code == 200
        served.process.terminate()
        printed, errors = served.process.communicate(timeout=TIMEOUT)
    assert printed == ""
    assert SECRET not in errors
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    access = [line for line in lines if line["logger"] == "xlaserve.access"]
    assert [(line["path"], line["status"], line["request_id"]) for line in access] == [("/v1/completions", 200, "mine")]
    begun, ended = (line for line in lines if line["logger"] == "xlaserve.requests")
    assert (begun["request_id"], begun["prompt_tokens"], begun["params"]["temperature"]) == ("mine", len(SECRET), 0.5)
    assert (ended["completion_tokens"], ended["finish_reasons"]) == (3, ["length"])
    assert begun["generation_id"] == ended["generation_id"]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "xlaserve")
    return caplog


def test_prompts_are_in_the_log_only_as_far_as_asked_for(lines: pytest.LogCaptureFixture) -> None:
    for settings, wanted in (({}, ""), ({"log_requests": True}, ""), ({"log_requests": True, "max_log_len": 5}, SECRET[:5])):
        lines.clear()
        with live_server(ScriptedEngine(), **settings) as live:
            assert live.client.post("/v1/completions", json={"prompt": SECRET, "max_tokens": 1}).status_code == 200
        assert SECRET not in lines.text
        assert (SECRET[:5] in lines.text) == bool(wanted)
        assert ("begins" in lines.text) == bool(settings)


def test_what_ends_early_is_told_so(lines: pytest.LogCaptureFixture) -> None:
    engine = ScriptedEngine()
    with live_server(engine, log_requests=True) as live:
        engine.failure, engine.fail_after = RuntimeError("a bug"), 2
        assert live.client.post("/v1/completions", json={"prompt": "a", "n": 2}).status_code == 500
    assert "2 tokens in" in lines.text
    assert "error, error" in lines.text


def test_no_line_for_each_request_where_unwanted(lines: pytest.LogCaptureFixture) -> None:
    for wanted in (True, False):
        lines.clear()
        with live_server(ScriptedEngine(), access_log=wanted) as live:
            assert live.client.get("/v1/models").status_code == 200
        assert ("/v1/models" in lines.text) == wanted


def test_a_path_cannot_forge_a_line(lines: pytest.LogCaptureFixture) -> None:
    with live_server(ScriptedEngine()) as live:
        assert live.client.get("/a%0d%0a2026-01-01 ERROR forged%1b[31m%e2%80%a8" + "x" * 3000).status_code == 404
    (line,) = (record.getMessage() for record in lines.records if record.name == "xlaserve.access")
    assert line.isprintable()
    assert line.isascii()
    assert len(line) < 1000


def test_the_engine_process_logs_alike() -> None:
    code = (
        "import logging; from xlaserve.engine.log_format import *; assert current_format() == 'text';"
        "log_to_stderr(logging.INFO, 'json'); assert current_format() == 'json'; logging.getLogger('xlaserve.x').info('hello')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert json.loads(done.stderr)["message"] == "hello"
