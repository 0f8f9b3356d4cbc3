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
from xlaserve.server.anthropic import endpoints as anthropic
from xlaserve.server.anthropic.protocol import CountTokens, CreateMessage
from xlaserve.server.chat import create_chat_completion
from xlaserve.server.completions import create_completion
from xlaserve.server.errors import answer_error
from xlaserve.server.middleware import RequestScope
from xlaserve.server.protocol import ChatCompletionRequest, CompletionRequest
from xlaserve.server.responses import endpoints as responses
from xlaserve.server.responses.protocol import CreateResponse
from xlaserve.server.state import ServerState

Endpoint = Callable[[Request], Awaitable[Response]]

_GET: tuple[tuple[str, Endpoint], ...] = (
    ("/v1/models", operations.list_models),
    ("/v1/models/{model:path}", operations.get_model),
    ("/health", operations.health),
    ("/ping", operations.health),
    ("/ready", operations.ready),
    ("/version", operations.version),
    ("/metrics", operations.metrics),
)
_RESPONSES: tuple[tuple[str, str, Endpoint], ...] = (
    ("GET", "/v1/responses/{response_id}", responses.get_response),
    ("DELETE", "/v1/responses/{response_id}", responses.delete_response),
    ("POST", "/v1/responses/{response_id}/cancel", responses.cancel_response),
    ("GET", "/v1/responses/{response_id}/input_items", responses.list_input_items),
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
    ("/v1/responses", responses.create_response, CreateResponse),
    ("/v1/responses/input_tokens", responses.count_input_tokens, CreateResponse),
    ("/v1/messages", anthropic.create_message, CreateMessage),
    ("/v1/messages/count_tokens", anthropic.count_tokens, CountTokens),
)


def create_app(state: ServerState) -> FastAPI:
    """The application on `state`. Until `state.attach` is called, requests that need the engine get a 503 that says so."""
    app = FastAPI(title="xlaserve", version=__version__, redirect_slashes=False)
    app.state.server = state
    for path, endpoint in _GET:
        app.add_api_route(path, endpoint, methods=["GET"], response_class=Response, response_model=None)
    for path, endpoint, body in _POST:
        app.add_api_route(path, endpoint, methods=["POST"], response_class=Response, response_model=None, openapi_extra=_schema(body))
    for method, path, endpoint in (*_RESPONSES, *(_DEV if state.settings.dev_endpoints else ())):
        app.add_api_route(path, endpoint, methods=[method], response_class=Response, response_model=None)
    for kind in (HTTPException, XlaserveError, ValidationError):
        app.add_exception_handler(kind, answer_error)
    app.add_middleware(RequestScope, state=state)
    return app


def _schema(body: type[BaseModel]) -> dict[str, Any]:
    # The endpoints read the body themselves, with their own limits and errors, so FastAPI cannot derive its schema.
    schema = body.model_json_schema()
    inlined = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inlined}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    # Definitions do not refer to themselves: bodies are trees.
    match schema:
        case {"$ref": str(reference)}:
            return _inlined(definitions[reference.removeprefix("#/$defs/")], definitions)
        case dict():
            return {name: _inlined(value, definitions) for name, value in schema.items()}
        case list():
            return [_inlined(value, definitions) for value in schema]
        case _:
            return schema
