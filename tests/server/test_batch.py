"""Batches: what is wrong with a file is said before anything runs, and a run that was cut short goes on where it was."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.server.scripted_engine import ScriptedEngine
from xlaserve.errors import ConfigError, EngineDeadError, OverloadedError
from xlaserve.server import batch
from xlaserve.server.app import create_app
from xlaserve.server.batch import Tally, batch_urls, run_batch
from xlaserve.server.batch_files import open_output, read_input
from xlaserve.server.settings import ServerSettings
from xlaserve.server.state import ServerState

URLS = {"/v1/completions", "/v1/chat/completions"}


def request(custom_id: str, *, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"prompt": "abc", "max_tokens": 3, **body}}


def written(path: Path, *entries: object) -> Path:
    path.write_text("".join(f"{entry if isinstance(entry, str) else json.dumps(entry)}\n" for entry in entries))
    return path


def run(engine: ScriptedEngine, source: Path, output: Path, at_once: int = 2) -> Tally:
    """What the command does with a loaded engine."""
    state = ServerState(ServerSettings())
    app = create_app(state)
    state.attach(engine)
    answered = open_output(output)
    left = [line for line in read_input(source, batch_urls(app)) if line.custom_id not in answered]
    return asyncio.run(run_batch(app, source, left, output, at_once=at_once, on_answer=lambda _tally: None))


def answers(path: Path) -> dict[str, Any]:
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({entry["custom_id"] for entry in entries}) == len(entries)
    return {entry["custom_id"]: entry for entry in entries}


def test_each_request_gets_its_answer(tmp_path: Path) -> None:
    chat = request("talk", url="/v1/chat/completions", messages=[{"role": "user", "content": "hi"}])
    del chat["body"]["prompt"]
    source = written(tmp_path / "in.jsonl", request("one"), "", chat, request("bad", temperature=9), request("two", n=2))
    tally = run(ScriptedEngine(), source, tmp_path / "out.jsonl")
    found = answers(tmp_path / "out.jsonl")
    assert found.keys() == {"one", "talk", "bad", "two"}
    assert found["one"]["error"] is None
    assert found["one"]["id"].startswith("batch_req_")
    response = found["one"]["response"]
    assert (response["status_code"], response["body"]["choices"][0]["text"]) == (200, "abc")
    assert response["request_id"]
    assert found["talk"]["response"]["body"]["choices"][0]["message"]["content"] == "abc"
    assert (found["bad"]["response"]["status_code"], found["bad"]["response"]["body"]["error"]["param"]) == (400, "temperature")
    assert (tally.answered, tally.refused, tally.tokens) == (3, 1, 3 + 3 + 6)
    assert list(tally.reasons.values()) == [1]


def test_as_many_at_once_as_asked(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    most = 0
    submit = engine.submit

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal most
        stream = submit(*args, **options)
        most = max(most, len(engine.running))
        return stream

    engine.submit = counted  # type: ignore[method-assign]
    source = written(tmp_path / "in.jsonl", *(request(str(n)) for n in range(20)))
    run(engine, source, tmp_path / "out.jsonl", at_once=4)
    assert most == 4
    assert len(answers(tmp_path / "out.jsonl")) == 20


def test_a_second_run_answers_what_is_left(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *(request(str(n)) for n in range(6)))
    first = ScriptedEngine()
    run(first, written(tmp_path / "half.jsonl", *(request(str(n)) for n in range(3))), tmp_path / "out.jsonl")
    with (tmp_path / "out.jsonl").open("a") as file:  # cut short in the middle of a line, after one that the server failed
        file.write(json.dumps({"id": "x", "custom_id": "4", "response": {"status_code": 500, "body": {}}, "error": None}) + "\n")
        file.write('{"id": "y", "custom_id": "5", "respo')
    second = ScriptedEngine()
    tally = run(second, source, tmp_path / "out.jsonl")
    assert (len(second.submitted), tally.answered) == (3, 3)
    found = answers(tmp_path / "out.jsonl")
    assert found.keys() == set("012345")
    assert {entry["response"]["status_code"] for entry in found.values()} == {200}
    third = ScriptedEngine()
    before = (tmp_path / "out.jsonl").read_bytes()
    run(third, source, tmp_path / "out.jsonl")
    assert third.submitted == []
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_dead_engine_leaves_no_answers(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    engine.failure = EngineDeadError("gone")
    engine.errored = engine.failure
    source = written(tmp_path / "in.jsonl", request("one"), request("two"))
    with pytest.raises(EngineDeadError, match="Run the same command again"):
        run(engine, source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_a_full_queue_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "RETRY_SECONDS", 0.0)
    engine = ScriptedEngine()
    refusals = iter([OverloadedError("full"), OverloadedError("full")])
    submit = engine.submit

    def refusing(*args: Any, **options: Any) -> Any:
        if (refusal := next(refusals, None)) is not None:
            raise refusal
        return submit(*args, **options)

    engine.submit = refusing  # type: ignore[method-assign]
    tally = run(engine, written(tmp_path / "in.jsonl", request("one")), tmp_path / "out.jsonl")
    assert (tally.answered, tally.refused) == (1, 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not JSON"),
        ("[1]", r"line 2: must be an object, got \[1\]"),
        ({**request("x"), "custom_id": 7}, "`custom_id` must be a non-empty string, got 7"),
        ({**request("x"), "custom_id": ""}, "`custom_id` must be a non-empty string"),
        (request("one"), '`custom_id` "one" is that of line 1 too'),
        ({**request("x"), "method": "GET"}, '`method` must be "POST", got "GET"'),
        (request("x", url="/v1/models"), "`url` must be one of /v1/chat/completions, /v1/completions, got"),
        ({**request("x"), "body": []}, r"`body` must be an object, got \[\]"),
        (request("x", stream=True), "`body.stream` must be left out"),
    ],
)
def test_a_wrong_line_is_named_before_anything_runs(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_input(written(tmp_path / "in.jsonl", request("one"), line), URLS)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"in\.jsonl: cannot be read"):
        read_input(tmp_path / "in.jsonl", URLS)
    with pytest.raises(ConfigError, match="line 1: is no answer of a batch"):
        open_output(written(tmp_path / "notes", {"custom_id": "mine"}))
    assert (tmp_path / "notes").exists()
    with pytest.raises(ConfigError, match="cannot be written"):
        open_output(tmp_path / "nowhere" / "out.jsonl")
    assert batch_urls(create_app(ServerState(ServerSettings()))) >= URLS
