"""What clients see when they go away, read too slowly, or the engine cannot serve them."""

from __future__ import annotations

import json
import socket

import pytest

from tests.server.live import TIMEOUT, Live, live_server
from tests.server.scripted_engine import ScriptedEngine
from tests.server.sse import events
from tests.server.test_bad_input import assert_error
from xlaserve.errors import EngineDeadError, InvalidRequestError, OverloadedError

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def send(live: Live, path: str, body: object) -> socket.socket:
    """A request whose answer nobody has read yet."""
    raw = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", live.port), TIMEOUT)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    connection.sendall(head.encode() + raw)
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", [{"prompt": "a", "max_tokens": 100}, {"prompt": ["a", "b", "c"], "n": 2, "max_tokens": 100}])
def test_disconnecting_aborts(server: Live, engine: ScriptedEngine, body: dict[str, object], stream: bool) -> None:
    engine.pause_after = 5
    connection = send(server, COMPLETIONS, {**body, "stream": stream})
    assert engine.paused.wait(TIMEOUT)
    assert engine.running
    connection.close()
    assert engine.aborted.wait(TIMEOUT)
    assert not engine.running
    assert server.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"prompt": "a"}),
        (COMPLETIONS, {"prompt": ["a", "b", "c"], "n": 2, "logprobs": 3}),
        (COMPLETIONS, {"prompt": "a", "stream_interval": 4}),
        (CHAT, HELLO),
    ],
)
def test_a_slow_reader_is_not_read_ahead_of_and_then_aborted(path: str, body: dict[str, object]) -> None:
    engine = ScriptedEngine(max_model_len=10**9)
    with live_server(engine, send_timeout=0.3) as live, send(live, path, {**body, "max_tokens": 10**8, "stream": True}):
        assert engine.aborted.wait(TIMEOUT)
        # What the sockets of both sides and the server's write buffer hold, not more; some 6 MiB, of which a token takes 30 bytes or more.
        assert sum(stream.produced for stream in engine.submitted) < 200_000
        assert live.client.get("/health").status_code == 200


@pytest.mark.parametrize(("token_seconds", "tokens"), [(0.02, 20), (0.3, 2)])
def test_a_reader_may_take_longer_in_all_and_so_may_the_engine(token_seconds: float, tokens: int) -> None:
    engine = ScriptedEngine()
    engine.token_seconds = token_seconds
    with live_server(engine, send_timeout=0.1) as live:
        chunks = events(live.client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": tokens, "stream": True}))
    assert len(chunks) == tokens


def test_overload_is_503_and_nothing_stays_submitted(server: Live, engine: ScriptedEngine) -> None:
    engine.refusal, engine.refuse_after = OverloadedError("the queue is full: 1024 requests wait."), 2
    response = server.client.post(COMPLETIONS, json={"prompt": ["a", "b", "c"]})
    error = assert_error(503, response)
    assert error["code"] == "overloaded"
    assert int(response.headers["retry-after"]) > 0
    assert len(engine.submitted) == 2
    assert not engine.running


def test_engine_refusals_keep_their_field(server: Live, engine: ScriptedEngine) -> None:
    engine.refusal = InvalidRequestError("stop_token_ids must be below 257, got 300.", field="stop_token_ids", value=300)
    error = assert_error(400, server.client.post(CHAT, json={**HELLO, "stream": True}))
    assert error["param"] == "stop_token_ids"


def test_dead_engine(server: Live, engine: ScriptedEngine) -> None:
    engine.healthy = False
    assert_error(500, server.client.post(CHAT, json=HELLO))
    assert server.client.get("/health").status_code == 503
    assert server.client.get("/ready").status_code == 503
    assert server.client.get("/ready").json()["status"] == "dead"
    assert "xlaserve:ready 0.0" in server.client.get("/metrics").text


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (EngineDeadError("the step failed in /srv/models/secret.bin"), "engine_dead"),
        (RuntimeError("a bug in /srv/secret.bin"), "internal_error"),
    ],
)
def test_failing_in_the_middle(server: Live, engine: ScriptedEngine, failure: Exception, code: str) -> None:
    engine.failure, engine.fail_after = failure, 3
    error = assert_error(500, server.client.post(CHAT, json=HELLO))
    assert error["code"] == code
    assert "/srv" not in error["message"]
    frames = server.client.post(CHAT, json={**HELLO, "stream": True}).text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    assert json.loads(frames[-3].removeprefix("data: "))["error"]["code"] == code
    assert frames.count("data: [DONE]") == 1
    assert not engine.running


def test_choices_that_the_engine_gives_up_are_errors(server: Live, engine: ScriptedEngine) -> None:
    engine.end_with, engine.fail_after = "error", 2
    assert_error(500, server.client.post(CHAT, json=HELLO))
    assert_error(500, server.client.post(COMPLETIONS, json={"prompt": ["a", "b"]}))
    assert not engine.running


def test_loading(engine: ScriptedEngine) -> None:
    with live_server(None) as live:
        live.state.report("compiling 3/10 in /root/cache/graphs")
        response = live.client.post(CHAT, json=HELLO)
        assert assert_error(503, response)["code"] == "not_ready"
        assert int(response.headers["retry-after"]) > 0
        assert_error(503, live.client.get("/v1/models"))
        assert live.client.get("/health").status_code == 200
        ready = live.client.get("/ready")
        assert ready.status_code == 503
        assert ready.json()["status"] == "loading"
        assert ready.json()["progress"] == ["compiling 3/10 in graphs"]
        assert "xlaserve:ready 0.0" in live.client.get("/metrics").text
        live.state.attach(engine)
        assert live.client.get("/ready").status_code == 200
        assert live.client.post(CHAT, json=HELLO).status_code == 200


def test_stopping(server: Live) -> None:
    server.state.stop()
    response = server.client.post(CHAT, json=HELLO)
    assert assert_error(503, response)["code"] == "shutting_down"
    assert server.client.get("/ready").status_code == 503
    assert server.client.get("/health").status_code == 200
