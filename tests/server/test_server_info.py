"""What operators and routers ask of a server: what it is, without what nobody should know, and how much it has to do."""

from __future__ import annotations

import json

from tests.server.live import TIMEOUT, Live, live_server
from tests.server.scripted_engine import ScriptedEngine
from tests.server.test_bad_input import assert_error
from tests.server.test_failures import send
from xlaserve import __version__


def test_what_a_server_is() -> None:
    settings = {"api_keys": ("the-secret-key",), "dev_endpoints": True, "profile_dir": "/srv/profiles"}
    with live_server(ScriptedEngine(), **settings) as live:
        live.client.headers["X-Api-Key"] = "the-secret-key"
        for path in ("/server_info", "/get_server_info"):
            info = live.client.get(path).json()
            assert (info["version"], info["model"], info["platform"], info["dtype"]) == (__version__, "scripted/model", "scripted", "text")
            assert info["load_format"] == "auto"
            assert info["kernels"] == "none"
            assert info["quantization"] is None
            assert info["versions"].keys() >= {"jax", "fastapi"}
            assert (info["engine"]["block_size"], info["engine"]["max_model_len"]) == (16, 128)
            assert (info["server"]["api_key"], info["server"]["tls"]) == (True, False)
            text = json.dumps(info)
            assert "secret" not in text
            assert "/srv" not in text
        for path in ("/model_info", "/get_model_info"):
            assert live.client.get(path).json()["model_path"] == "scripted/model"


def test_before_it_is_ready() -> None:
    with live_server(None) as live:
        assert assert_error(503, live.client.get("/server_info"))["code"] == "not_ready"
        assert live.client.get("/load").json() == {"server_load": 0}


def test_load_is_the_requests_that_ask_for_work(server: Live, engine: ScriptedEngine) -> None:
    engine.pause_after = 2
    with send(server, "/v1/completions", {"prompt": ["a", "b"], "max_tokens": 4}):
        assert engine.paused.wait(TIMEOUT)
        assert server.client.get("/load").json() == {"server_load": 1}
    assert engine.aborted.wait(TIMEOUT)
    while load := server.client.get("/load").json()["server_load"]:
        assert load == 1
