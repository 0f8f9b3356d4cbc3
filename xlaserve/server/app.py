"""The HTTP application: routes, error handlers, middleware. It serves as soon as it exists; the engine is attached when loaded."""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from xlaserve import __version__
from xlaserve.errors import XlaserveError
from xlaserve.server import control, operations, server_info, tokenize
from xlaserve.server.answer_models import (
    AnthropicError,
    ChatCompletion,
    Completion,
    ItemList,
    Load,
    Message,
    MessageTokens,
    Model,
    ModelInfo,
    ModelList,
    Readiness,
    ResponseObject,
    Text,
    TokenizerInfo,
    Tokens,
    Version,
)
from xlaserve.server.anthropic import endpoints as anthropic
from xlaserve.server.anthropic.protocol import CountTokens, CreateMessage
from xlaserve.server.auth import ApiKeys
from xlaserve.server.chat import create_chat_completion
from xlaserve.server.completions import create_completion
from xlaserve.server.errors import ANTHROPIC_OVERLOADED, answer_error
from xlaserve.server.middleware import RequestScope
from xlaserve.server.page import PATHS, page
from xlaserve.server.pooling import refuse_pooling
from xlaserve.server.protocol import ChatCompletionRequest, CompletionRequest
from xlaserve.server.responses import endpoints as responses
from xlaserve.server.responses.protocol import CreateResponse
from xlaserve.server.routes import GENERATES, NEEDS_ENGINE, Route, document
from xlaserve.server.state import ServerState

# fmt: off
_ROUTES = (
    Route("POST", "/v1/completions", create_completion, CompletionRequest, Completion, events=True, statuses=GENERATES),
    Route("POST", "/v1/chat/completions", create_chat_completion, ChatCompletionRequest, ChatCompletion, events=True, statuses=GENERATES),
    Route("POST", "/v1/responses", responses.create_response, CreateResponse, ResponseObject, events=True, statuses=GENERATES),
    Route("POST", "/v1/responses/input_tokens", responses.count_input_tokens, CreateResponse, statuses=(*NEEDS_ENGINE, 404)),
    Route("GET", "/v1/responses/{response_id}", responses.get_response, answer=ResponseObject, events=True,
          query={"stream": ("true", "false"), "starting_after": ()}, statuses=(404,)),
    Route("DELETE", "/v1/responses/{response_id}", responses.delete_response, statuses=(404,)),
    Route("POST", "/v1/responses/{response_id}/cancel", responses.cancel_response, answer=ResponseObject, statuses=(400, 404)),
    Route("GET", "/v1/responses/{response_id}/input_items", responses.list_input_items, answer=ItemList,
          query={"limit": (), "order": ("asc", "desc"), "after": ()}, statuses=(404,)),
    Route("POST", "/v1/messages", anthropic.create_message, CreateMessage, Message, events=True, error=AnthropicError,
          statuses=(*GENERATES, ANTHROPIC_OVERLOADED)),
    Route("POST", "/v1/messages/count_tokens", anthropic.count_tokens, CountTokens, MessageTokens, error=AnthropicError,
          statuses=(*NEEDS_ENGINE, 404)),
    Route("POST", "/tokenize", tokenize.tokenize, tokenize.TokenizeRequest, Tokens, statuses=(*NEEDS_ENGINE, 404)),
    Route("POST", "/detokenize", tokenize.detokenize, tokenize.DetokenizeRequest, Text, statuses=(*NEEDS_ENGINE, 404)),
    Route("GET", "/tokenizer_info", tokenize.tokenizer_info, answer=TokenizerInfo, statuses=NEEDS_ENGINE),
    *(Route("POST", path, refuse_pooling, answer=None, statuses=(*NEEDS_ENGINE, 400)) for path in (
        "/v1/embeddings", "/pooling", "/classify", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank")),
    Route("GET", "/v1/models", operations.list_models, answer=ModelList, statuses=NEEDS_ENGINE),
    Route("GET", "/v1/models/{model:path}", operations.get_model, answer=Model, statuses=(*NEEDS_ENGINE, 404)),
    Route("GET", "/health", operations.health, answer=None, alike=(503,), guarded=False),
    Route("GET", "/ping", operations.health, answer=None, alike=(503,), guarded=False),
    Route("GET", "/ready", operations.ready, answer=Readiness, alike=(503,), guarded=False),
    Route("GET", "/version", operations.version, answer=Version, guarded=False),
    Route("GET", "/load", server_info.load, answer=Load),
    *(Route("GET", path, server_info.server_info, statuses=NEEDS_ENGINE) for path in ("/server_info", "/get_server_info")),
    *(Route("GET", path, server_info.model_info, answer=ModelInfo, statuses=NEEDS_ENGINE) for path in ("/model_info", "/get_model_info")),
    Route("GET", "/engine", operations.engine, statuses=NEEDS_ENGINE),
    Route("GET", "/metrics", operations.metrics, answer="text/plain"),
)
_DEV = (
    Route("POST", "/pause", control.pause, query={"mode": ("keep", "abort", "wait")}, statuses=(*NEEDS_ENGINE, 409)),
    Route("POST", "/resume", control.resume, statuses=(*NEEDS_ENGINE, 400, 409)),
    Route("GET", "/is_paused", control.is_paused, statuses=(*NEEDS_ENGINE, 400)),
    Route("POST", "/sleep", control.sleep, query={"level": ("1", "2")}, statuses=NEEDS_ENGINE),
    Route("POST", "/wake_up", control.wake_up, answer=None, statuses=(*NEEDS_ENGINE, 400)),
    Route("GET", "/is_sleeping", control.is_sleeping, statuses=(*NEEDS_ENGINE, 400)),
    Route("POST", "/reset_prefix_cache", control.reset_prefix_cache, answer=None, statuses=(*NEEDS_ENGINE, 400)),
    Route("POST", "/start_profile", control.start_profile, answer=None, statuses=(*NEEDS_ENGINE, 400, 409)),
    Route("POST", "/stop_profile", control.stop_profile, answer=None, statuses=(*NEEDS_ENGINE, 400, 409)),
    Route("GET", "/trace", control.trace, statuses=(*NEEDS_ENGINE, 400)),
)
# fmt: on


def create_app(state: ServerState) -> FastAPI:
    """The application on `state`. Until `state.attach` is called, requests that need the engine get a 503 that says so."""
    app = FastAPI(title="xlaserve", version=__version__, redirect_slashes=False)
    app.state.server = state
    routes = (*_ROUTES, *(_DEV if state.settings.dev_endpoints else ()))
    for route in routes:
        route.add_to(app)
    for path in PATHS if state.settings.page else ():
        app.add_api_route(path, page, methods=["GET"], response_class=Response, response_model=None, include_in_schema=False)
    app.openapi = partial(document, app, routes)  # type: ignore[method-assign]
    for kind in (HTTPException, XlaserveError, ValidationError):
        app.add_exception_handler(kind, answer_error)
    open_paths = {route.path for route in routes if not route.guarded}
    _add_middleware(app, state, frozenset(open_paths if state.settings.guard_metrics else {*open_paths, "/metrics"}))
    return app


def _add_middleware(app: FastAPI, state: ServerState, open_paths: frozenset[str]) -> None:
    # The last is the outermost: refusals have a request id and are counted, and browsers may read them.
    settings = state.settings
    if settings.api_keys:
        # The page holds no data: it asks for the key, and brings it where it asks for some.
        app.add_middleware(ApiKeys, keys=settings.api_keys, open_paths=open_paths.union(PATHS if settings.page else ()))
    if settings.cors is not None:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors.origins,
            allow_methods=settings.cors.methods,
            allow_headers=settings.cors.headers,
            allow_credentials=settings.cors.credentials,
            expose_headers=("X-Request-Id", "Retry-After"),
        )
    app.add_middleware(RequestScope, state=state)
