"""openapi.json is true: whatever is made up from it is answered with a status and a body that it declares, and never with a 5xx."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from starlette.testclient import TestClient

from tests.server.scripted_engine import ScriptedEngine
from xlaserve.server.app import create_app
from xlaserve.server.settings import ServerSettings
from xlaserve.server.state import ServerState

_state = ServerState(ServerSettings(dev_endpoints=True))
_state.attach(ScriptedEngine())
APP = create_app(_state)
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@SCHEMA.hook
def map_body(context: object, body: Any) -> Any:
    """Names the model that is served in most bodies, and asks for what fits it: else nearly all would be refused for one of these."""
    if isinstance(body, dict) and len(body) % 4:
        for name in ("min_tokens", "use_beam_search"):
            body.pop(name, None)
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if isinstance(tokens := body.get(name), int):
                body[name] = 1 + abs(tokens) % 16
        if isinstance(body.get("model"), str):
            body["model"] = "scripted/model"
        if not body.get("stream"):
            body.pop("stream_options", None)
    return body


@SCHEMA.hook
def map_path_parameters(context: object, path_parameters: Any) -> Any:
    """Names the served model where a name is even in length."""
    if path_parameters and isinstance(name := path_parameters.get("model"), str) and len(name) % 2 == 0:
        return {"model": "scripted/model"}
    return path_parameters


@SCHEMA.parametrize()
@settings(max_examples=25, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_as_documented(case: Case) -> None:
    case.call_and_validate(checks=CHECKS)


def test_every_route_is_documented() -> None:
    with TestClient(APP) as client:
        document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "200" in operation["responses"], path
            if "requestBody" in operation:
                assert {"400", "413", "415"} <= operation["responses"].keys()
    schemas = document["components"]["schemas"]
    assert schemas["CompletionRequest"]["required"] == ["prompt"]
    assert schemas["ChatCompletionRequest"]["required"] == ["messages"]
    assert "include_usage" in schemas["StreamOptions"]["properties"]
