"""The HTTP application: routes, error handlers, middleware. It serves as soon as it exists; the engine is attached when loaded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from xlaserve import __version__
from xlaserve.errors import XlaserveError
from xlaserve.server import control, operations
from xlaserve.server.chat import create_chat_completion
from xlaserve.server.completions import create_completion
from xlaserve.server.errors import answer_error
from xlaserve.server.middleware import RequestScope
from xlaserve.server.page import PATHS, page
from xlaserve.server.protocol import ChatCompletionRequest, CompletionRequest
from xlaserve.server.state import ServerState

Endpoint = Callable[[Request], Awaitable[Response]]

_GET: tuple[tuple[str, Endpoint], ...] = (
    ("/v1/models", operations.list_models),
    ("/v1/models/{model:path}", operations.get_model),
    ("/health", operations.health),
    ("/ping", operations.health),
    ("/ready", operations.ready),
    ("/version", operations.version),
    ("/engine", operations.engine),
    ("/metrics", operations.metrics),
)
_DEV: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/pause", control.pause),
    ("POST", "/resume", control.resume),
    ("GET", "/is_paused", control.is_paused),
    ("POST", "/sleep", control.sleep),
    ("POST", "/wake_up", control.wake_up),
    ("GET", "/is_sleeping", control.is_sleeping),
    ("POST", "/reset_prefix_cache", control.reset_prefix_cache),
    ("GET", "/trace", control.trace),
)
_POST: tuple[tuple[str, Endpoint, type[BaseModel]], ...] = (
    ("/v1/completions", create_completion, CompletionRequest),
    ("/v1/chat/completions", create_chat_completion, ChatCompletionRequest),
)


def create_app(state: ServerState) -> FastAPI:
    """The application on `state`. Until `state.attach` is called, requests that need the engine get a 503 that says so."""
    app = FastAPI(title="xlaserve", version=__version__, redirect_slashes=False)
    app.state.server = state
    for path, endpoint in _GET:
        app.add_api_route(path, endpoint, methods=["GET"], response_class=Response, response_model=None)
    for path, endpoint, body in _POST:
        app.add_api_route(path, endpoint, methods=["POST"], response_class=Response, response_model=None, openapi_extra=_schema(body))
    for path in PATHS if state.settings.page else ():
        app.add_api_route(path, page, methods=["GET"], response_class=Response, response_model=None, include_in_schema=False)
    for method, path, endpoint in _DEV if state.settings.dev_endpoints else ():
        app.add_api_route(path, endpoint, methods=[method], response_class=Response, response_model=None)
    for kind in (HTTPException, XlaserveError, ValidationError):
        app.add_exception_handler(kind, answer_error)
    app.add_middleware(RequestScope, state=state)
    return app


def _schema(body: type[BaseModel]) -> dict[str, Any]:
    # The endpoints read the body themselves, with their own limits and errors, so FastAPI cannot derive its schema.
    schema = body.model_json_schema()
    for definition in schema.pop("$defs", {}).values():
        for name, field in schema["properties"].items():
            if {"$ref": f"#/$defs/{definition['title']}"} in field.get("anyOf", []):
                schema["properties"][name] = {"anyOf": [definition, {"type": "null"}]}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
