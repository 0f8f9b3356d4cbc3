"""API keys: everything but the probes asks for one, and a wrong one is answered in the one shape of errors."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute

from tests.server.live import Live, live_server
from tests.server.scripted_engine import ScriptedEngine
from tests.server.test_bad_input import assert_error
from xlaserve.cli import main
from xlaserve.errors import ConfigError
from xlaserve.server.app import create_app
from xlaserve.server.auth import api_keys
from xlaserve.server.page import PATHS
from xlaserve.server.settings import Cors, ServerSettings
from xlaserve.server.state import ServerState

KEYS = ("first-key", "second-key")
OPEN = {"/health", "/ping", "/ready", "/version", "/metrics", *PATHS}
BODY = {"prompt": "a", "max_tokens": 1}


@pytest.fixture(scope="module")
def guarded() -> Generator[Live]:
    with live_server(ScriptedEngine(), api_keys=KEYS, dev_endpoints=True) as live:
        yield live


def routes() -> list[tuple[str, str]]:
    app = create_app(ServerState(ServerSettings(dev_endpoints=True)))
    found = [(route.path, method) for route in app.routes for method in getattr(route, "methods", None) or ()]
    assert any(isinstance(route, APIRoute) for route in app.routes)
    assert len(found) > 15
    return found


@pytest.mark.parametrize(("path", "method"), routes())
def test_every_route_but_the_probes_is_guarded(guarded: Live, path: str, method: str) -> None:
    response = guarded.client.request(method, path)
    assert (response.status_code != 401) == (path in OPEN)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key"},
        {"Authorization": "bearer  second-key"},
        {"X-Api-Key": "second-key"},
        {"Authorization": "Basic eA==", "x-api-key": "first-key"},
        {"Authorization": "Bearer wrong", "x-api-key": "first-key"},
    ],
)
def test_keys_that_are_accepted(guarded: Live, headers: dict[str, str]) -> None:
    assert guarded.client.post("/v1/completions", json=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, "Bearer"),
        ({"Authorization": "first-key"}, "Bearer"),
        ({"Authorization": "Basic first-key"}, "Bearer"),
        ({"Authorization": "Bearer"}, "Bearer"),
        ({"X-Api-Key": ""}, "Bearer"),
        ({"Authorization": "Bearer first-ke"}, 'Bearer error="invalid_token"'),
        ({"Authorization": "Bearer first-key,second-key"}, 'Bearer error="invalid_token"'),
        ({"Authorization": "Bearer first-keyfirst-key"}, 'Bearer error="invalid_token"'),
        ({"X-Api-Key": b"\xff\xfe"}, 'Bearer error="invalid_token"'),
        ({"X-Api-Key": "x" * 10_000}, 'Bearer error="invalid_token"'),
    ],
)
def test_what_is_refused(guarded: Live, headers: dict[str, str], challenge: str) -> None:
    for path in ("/v1/completions", "/v1/models", "/docs", "/nothing", "/health/", "/health/../v1/models", "/version%2f"):
        response = guarded.client.post(path, json=BODY, headers=headers)
        error = assert_error(401, response)
        assert (error["type"], error["code"], error["param"]) == ("authentication_error", "invalid_api_key", None)
        assert response.headers["www-authenticate"] == challenge
        assert response.headers["x-request-id"]
        assert "first" not in error["message"]


def test_anthropics_paths_have_its_shape_of_errors(guarded: Live) -> None:
    response = guarded.client.post("/v1/messages", json={}, headers={"x-api-key": "wrong"})
    assert response.status_code == 401
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == "authentication_error"
    assert response.headers["www-authenticate"].startswith("Bearer")


def test_refusals_reach_no_endpoint() -> None:
    engine = ScriptedEngine()
    with live_server(engine, api_keys=KEYS) as live:
        assert live.client.post("/v1/completions", json=BODY).status_code == 401
        assert not engine.submitted


def test_metrics_are_guarded_where_asked_for() -> None:
    with live_server(ScriptedEngine(), api_keys=KEYS, guard_metrics=True) as live:
        assert_error(401, live.client.get("/metrics"))
        assert live.client.get("/metrics", headers={"X-Api-Key": KEYS[0]}).status_code == 200
        assert live.client.get("/health").status_code == 200


def test_behind_a_proxy_that_takes_off_a_prefix() -> None:
    with live_server(ScriptedEngine(), api_keys=KEYS, root_path="/llm") as live:
        assert live.client.get("/health").status_code == 200
        assert_error(401, live.client.get("/v1/models"))
        assert live.client.get("/v1/models", headers={"X-Api-Key": KEYS[0]}).status_code == 200
        document = live.client.get("/openapi.json", headers={"X-Api-Key": KEYS[0]}).json()
        assert document["servers"] == [{"url": "/llm"}]


def test_browsers_of_other_origins() -> None:
    page = {"Origin": "https://page.example"}
    preflight = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with live_server(ScriptedEngine(), api_keys=KEYS, cors=Cors(origins=("https://page.example",))) as live:
        response = live.client.options("/v1/completions", headers=preflight)
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "https://page.example")
        assert "POST" in response.headers["access-control-allow-methods"]
        # A page can read why it was refused.
        response = live.client.post("/v1/completions", json=BODY, headers=page)
        assert_error(401, response)
        assert response.headers["access-control-allow-origin"] == "https://page.example"
        response = live.client.post("/v1/completions", json={**BODY, "stream": True}, headers={**page, "X-Api-Key": KEYS[0]})
        assert response.headers["access-control-allow-origin"] == "https://page.example"
        assert "X-Request-Id" in response.headers["access-control-expose-headers"]
        other = live.client.get("/health", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_no_other_origins_by_default(shared: Live) -> None:
    response = shared.client.get("/health", headers={"Origin": "https://page.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_where_keys_come_from(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\none\n\n  two  \none\n")
    environ = {"XLASERVE_API_KEY": "of-the-environment"}
    assert api_keys([], None, {}) == ()
    assert api_keys([], None, environ) == ("of-the-environment",)
    assert api_keys(["zero"], str(file), environ) == ("zero", "one", "two")


@pytest.mark.parametrize(
    ("given", "text", "environ", "message"),
    [
        ([], "# nothing\n", {}, "names no key"),
        ([], None, {"XLASERVE_API_KEY": ""}, "not empty"),
        ([""], None, {}, "not empty"),
        (["with space"], None, {}, "without spaces"),
        (["k\u00e9y"], None, {}, "printable ASCII"),
    ],
)
def test_keys_that_could_not_work(given: list[str], text: str | None, environ: dict[str, str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(text or "")
    with pytest.raises(ConfigError, match=message):
        api_keys(given, str(file) if text is not None else None, environ)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"--api-key-file /nowhere/keys cannot be read"):
        api_keys([], "/nowhere/keys", {})


def test_the_official_headers() -> None:
    """What the two vendors' own clients send."""
    from anthropic import Anthropic
    from openai import OpenAI

    def sent(client: OpenAI | Anthropic) -> httpx.Headers:
        return httpx.Headers(client.auth_headers)

    with live_server(ScriptedEngine(), api_keys=KEYS) as live:
        for headers in (sent(OpenAI(api_key=KEYS[0])), sent(Anthropic(api_key=KEYS[1]))):
            assert live.client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("command", [["chat", "-q", "hi"], ["complete", "-p", "hi"]])
def test_commands_bring_the_key(command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with live_server(ScriptedEngine(), api_keys=KEYS) as live:
        asked = [*command, "--url", live.url, "--max-tokens=3"]
        assert main(asked) == 1
        assert "answered 401 Unauthorized: This server asks for an API key" in capsys.readouterr().err
        assert main([*asked, "--api-key", KEYS[0]]) == 0
        monkeypatch.setenv("XLASERVE_API_KEY", KEYS[1])
        assert main(asked) == 0
        assert capsys.readouterr().out.splitlines() == ["abc", "abc"]
