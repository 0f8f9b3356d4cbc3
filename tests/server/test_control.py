"""The endpoints that control the engine: there only when asked for, strict about parameters, and true to the engine process."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from httpx import Response
from prometheus_client.parser import text_string_to_metric_families

from tests.server.live import Live, live_server
from tests.server.scripted_engine import ScriptedEngine
from tests.server.served import Served, serving
from tests.server.test_bad_input import assert_error
from xlaserve.errors import CallFailedError, CheckpointError, EngineDeadError, EngineStateError

COMPLETIONS = "/v1/completions"
ENDPOINTS = [
    ("POST", "/pause"),
    ("POST", "/resume"),
    ("GET", "/is_paused"),
    ("POST", "/sleep"),
    ("POST", "/wake_up"),
    ("GET", "/is_sleeping"),
    ("POST", "/reset_prefix_cache"),
    ("GET", "/trace"),
    ("POST", "/start_profile"),
    ("POST", "/stop_profile"),
]


@pytest.fixture
def dev(engine: ScriptedEngine) -> Generator[Live]:
    with live_server(engine, dev_endpoints=True, profile_dir="/srv/profiles") as live:
        yield live


def test_they_are_not_there_unless_asked_for(server: Live, engine: ScriptedEngine) -> None:
    for method, path in ENDPOINTS:
        assert assert_error(404, server.client.request(method, path))["code"] == "not_found"
    assert not engine.calls
    paths = server.client.get("/openapi.json").json()["paths"]
    assert not any(path in paths for _, path in ENDPOINTS)


def test_answers(dev: Live, engine: ScriptedEngine) -> None:
    def post(path: str) -> Any:
        response = dev.client.post(path)
        assert response.status_code == 200, response.text
        return response.json() if response.content else None

    assert dev.client.get("/is_paused").json() == {"is_paused": False}
    assert post("/pause") == {"status": "paused"}
    assert dev.client.get("/is_paused").json() == {"is_paused": True}
    assert post("/pause?mode=abort") == {"status": "paused"}
    assert post("/resume") == {"status": "resumed"}
    assert post("/sleep") == {"level": 1, "freed_bytes": 1000}
    assert post("/sleep?level=2") == {"level": 2, "freed_bytes": 2000}
    assert dev.client.get("/is_sleeping").json() == {"is_sleeping": True}
    assert post("/wake_up") is None
    assert dev.client.get("/is_sleeping").json() == {"is_sleeping": False}
    assert post("/reset_prefix_cache") is None
    assert dev.client.get("/trace").json() == {"traceEvents": []}
    assert engine.calls == [
        ("pause", "keep"),
        ("pause", "abort"),
        ("resume",),
        ("sleep", 1),
        ("sleep", 2),
        ("wake",),
        ("reset_prefix_cache",),
        ("trace",),
    ]


@pytest.mark.parametrize(
    ("path", "field", "message"),
    [
        ("/pause?mode=later", "mode", "mode must be one of keep, abort, wait, got 'later'."),
        ("/pause?mode=", "mode", "mode must be one of"),
        ("/pause?mode=keep&mode=abort", "mode", "mode must be given once"),
        ("/pause?wait=true", "wait", "'wait' is not a parameter of /pause"),
        ("/sleep?level=3", "level", "level must be 1 or 2, got '3'."),
        ("/sleep?level=0", "level", "level must be 1 or 2"),
        ("/sleep?level=%C2%B2", "level", "level must be 1 or 2"),
        ("/sleep?level=" + "9" * 5000, "level", "level must be 1 or 2"),
        ("/sleep?level=1&mode=abort", "mode", "'mode' is not a parameter of /sleep"),
        ("/wake_up?tags=weights", "tags", "'tags' is not a parameter of /wake_up"),
        ("/resume?x", "x", "'x' is not a parameter of /resume"),
    ],
)
def test_bad_parameters(dev: Live, engine: ScriptedEngine, path: str, field: str, message: str) -> None:
    error = assert_error(400, dev.client.post(path))
    assert error["param"] == field
    assert message in error["message"]
    assert not engine.calls


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (EngineStateError("The engine sleeps."), 409, "engine_state"),
        (CallFailedError("There is no memory."), 500, "call_failed"),
        (CheckpointError("/srv/models/m: it is gone."), 500, "call_failed"),
        (EngineDeadError("The engine is gone."), 500, "engine_dead"),
    ],
)
def test_failures(dev: Live, engine: ScriptedEngine, failure: Exception, status: int, code: str) -> None:
    engine.refusal = failure
    for method, path in ENDPOINTS:
        if not path.startswith("/is_"):
            error = assert_error(status, dev.client.request(method, path))
            assert error["code"] == code
            assert "/srv" not in error["message"]


def test_while_loading() -> None:
    with live_server(None, dev_endpoints=True) as live:
        for method, path in ENDPOINTS:
            assert assert_error(503, live.client.request(method, path))["code"] == "not_ready"


def test_aborted_choices_say_so(server: Live, engine: ScriptedEngine) -> None:
    engine.end_with, engine.fail_after = "abort", 2
    whole = server.client.post(COMPLETIONS, json={"prompt": "hello", "max_tokens": 3}).json()
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["abort"]


@pytest.fixture(scope="module")
def served(tiny_model: Callable[[str], Path]) -> Generator[Served]:
    with serving(tiny_model("llama3"), "--dev-endpoints", "--stall-timeout=1") as process:
        process.read_until_ready()
        yield process


BODY: dict[str, Any] = {"prompt": [5, 6, 7], "seed": 3, "temperature": 1.0, "max_tokens": 200, "ignore_eos": True}


def texts(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))["choices"][0]["text"]


def metrics(served: Served) -> dict[str, float]:
    """Metrics of the engine, by name, and sleep state where there is one."""
    families = text_string_to_metric_families(served.client.get("/metrics").text)
    samples = (sample for family in families for sample in family.samples)
    return {sample.name + sample.labels.get("sleep_state", ""): sample.value for sample in samples}


def test_sleep_in_the_middle_of_a_stream(served: Served) -> None:
    """The engine process gives its memory back at both levels while clients stream, and they notice nothing but a pause."""
    post, get = served.client.post, served.client.get
    expected = post(COMPLETIONS, json=BODY).json()["choices"][0]["text"]
    for level, state in ((1, "weights_offloaded"), (2, "discard_all")):
        with served.client.stream("POST", COMPLETIONS, json={**BODY, "stream": True}) as response:
            parts = texts(response.iter_lines())
            begun = next(parts)
            asleep = post(f"/sleep?level={level}").json()
            assert asleep["level"] == level
            assert asleep["freed_bytes"] > 2**20
            assert (get("/is_sleeping").json(), get("/is_paused").json()) == ({"is_sleeping": True}, {"is_paused": True})
            found = metrics(served)
            assert (found["xlaserve:paused"], found["xlaserve:engine_sleep_state" + state], found["vllm:engine_sleep_stateawake"]) == (
                1,
                1,
                0,
            )
            assert (found["xlaserve:num_requests_running"], found["xlaserve:kv_cache_usage_perc"]) == (0, 0)
            assert assert_error(409, post("/resume"))["code"] == "engine_state"
            assert assert_error(409, post("/pause?mode=wait"))["code"] == "engine_state"
            assert get("/health").status_code == 200
            assert post("/wake_up").status_code == 200
            assert (get("/is_sleeping").json(), get("/is_paused").json()) == ({"is_sleeping": False}, {"is_paused": False})
            assert begun + "".join(parts) == expected
    found = metrics(served)
    assert (found["xlaserve:paused"], found["xlaserve:engine_sleep_stateawake"]) == (0, 1)
    assert (found["xlaserve:compile_events_total"], found["xlaserve:num_preemptions_total"]) == (0, 0)


def test_pauses_of_the_engine_process(served: Served) -> None:
    post = served.client.post
    expected = post(COMPLETIONS, json=BODY).json()["choices"][0]["text"]
    with ThreadPoolExecutor(1) as threads:

        def wait_in_line() -> Future[Response]:
            waiting = threads.submit(post, COMPLETIONS, json=BODY)
            while metrics(served)["xlaserve:num_requests_waiting"] == 0:
                assert not waiting.done()
            return waiting

        with served.client.stream("POST", COMPLETIONS, json={**BODY, "stream": True}) as response:
            parts = texts(response.iter_lines())
            begun = next(parts)
            assert post("/pause").json() == {"status": "paused"}
            steps = metrics(served)["xlaserve:steps_total"]
            late = wait_in_line()
            assert metrics(served)["xlaserve:steps_total"] == steps
            assert post("/resume").json() == {"status": "resumed"}
            assert begun + "".join(parts) == expected
            assert late.result().json()["choices"][0]["text"] == expected

        post("/pause")
        late = wait_in_line()
        assert post("/pause?mode=abort").json() == {"status": "paused"}
        assert late.result().json()["choices"][0]["finish_reason"] == "abort"

        late = wait_in_line()
        assert post("/pause?mode=wait").json() == {"status": "paused"}
        assert late.result().json()["choices"][0]["text"] == expected
        assert served.client.get("/is_paused").json() == {"is_paused": True}
        assert post("/resume").json() == {"status": "resumed"}


def test_trace_and_reset_of_the_engine_process(served: Served) -> None:
    body = {**BODY, "prompt": [9 + i for i in range(40)], "max_tokens": 2}

    def cached() -> int:
        return served.client.post(COMPLETIONS, json=body).json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert [cached(), cached()] == [0, 32]
    assert served.client.post("/reset_prefix_cache").content == b""
    assert cached() == 0
    trace = served.client.get("/trace").json()
    lanes = {event["args"]["name"]: event["tid"] for event in trace["traceEvents"] if event["ph"] == "M"}
    on_device = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["tid"] == lanes["device"]]
    assert len(on_device) == metrics(served)["xlaserve:steps_total"]
    assert all(event["dur"] > 0 for event in on_device)
    assert {graph.partition("-")[0] for event in on_device for graph in event["args"]["graphs"]} == {"context", "generate"}


def test_profiles_go_where_the_operator_says(dev: Live, engine: ScriptedEngine) -> None:
    assert dev.client.post("/start_profile").status_code == 200
    assert dev.client.post("/stop_profile").status_code == 200
    assert engine.calls == [("start_profile", "/srv/profiles"), ("stop_profile",)]
    assert_error(400, dev.client.post("/start_profile?directory=/etc"))
    engine.refusal = CallFailedError("The engine could not stop_profile: OSError: no room in /srv/profiles/x")
    assert "/srv" not in assert_error(500, dev.client.post("/stop_profile"))["message"]


def test_profiles_need_a_directory(engine: ScriptedEngine) -> None:
    with live_server(engine, dev_endpoints=True) as live:
        for path in ("/start_profile", "/stop_profile"):
            assert "--profile-dir" in assert_error(409, live.client.post(path))["message"]
    assert not engine.calls


def test_one_profile_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    from xlaserve.engine.profiler import Profiler

    calls: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", calls.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    profiler = Profiler()
    with pytest.raises(EngineStateError, match="start one first"):
        profiler.stop()
    profiler.start("here")
    with pytest.raises(EngineStateError, match="stop it first"):
        profiler.start("there")
    profiler.stop()
    profiler.start("there")
    assert calls == ["here", "stop", "there"]
