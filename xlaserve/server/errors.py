"""The one place where an exception becomes an HTTP answer: {"error": {message, type, param, code}}, or as Anthropic's clients want it.

Nothing that leaves through here holds a traceback, and messages about the server's own failures hold no file paths.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from xlaserve.errors import (
    CallFailedError,
    CheckpointError,
    EngineDeadError,
    EngineStateError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    XlaserveError,
)

log = logging.getLogger(__name__)

MAX_MESSAGE_CHARS = 1000
_JSON_TYPES = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "float_type": "a number",
    "int_type": "an integer",
    "list_type": "an array",
    "model_type": "an object",
    "string_type": "a string",
}
# https://docs.anthropic.com/en/api/errors
ANTHROPIC_OVERLOADED = 529
_ANTHROPIC_PATHS = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}
_ABSOLUTE_FOLDER = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:)?[/\\](?:[\w.+@~ -]+[/\\])+")


class ContextLengthError(InvalidRequestError):
    """The prompt, or the prompt with the tokens asked for, is longer than the model's context."""


class PreviousResponseNotFoundError(InvalidRequestError):
    """The response that a request wants to continue is not there."""


class ResponseNotFoundError(XlaserveError):
    """A response that was asked for by its id is not there."""


class UnsupportedByModelError(XlaserveError):
    """The endpoint needs a model of another kind."""


class NotReadyError(XlaserveError):
    """The model is still loading or its graphs are still being prepared."""


class ShuttingDownError(XlaserveError):
    """The server has been told to stop."""


class GenerationFailedError(XlaserveError):
    """The engine gave up on one request; others go on."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as the client sees it.

    Args:
        status: HTTP status.
        message: a sentence for the person who sent the request.
        kind: OpenAI's `type`.
        param: the offending field as the client wrote it, dotted where it is nested.
        code: a stable word for programs.
        headers: further response headers.
    """

    status: int
    message: str
    kind: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def payload(self) -> bytes:
        """The JSON body, also the data of an error event in a stream."""
        return orjson.dumps({"error": {"message": self._bounded_message(), "type": self.kind, "param": self.param, "code": self.code}})

    def anthropic_payload(self) -> bytes:
        """The same in the shape of Anthropic's API."""
        return orjson.dumps({"type": "error", "error": {"type": self._anthropic()[1], "message": self._bounded_message()}})

    def anthropic_response(self) -> Response:
        """The whole HTTP answer in the shape of Anthropic's API, which has a status of its own for overload."""
        status = self._anthropic()[0]
        return Response(self.anthropic_payload(), status_code=status, headers=dict(self.headers), media_type="application/json")

    def response(self) -> Response:
        """The whole HTTP answer."""
        return Response(self.payload(), status_code=self.status, headers=dict(self.headers), media_type="application/json")

    def _bounded_message(self) -> str:
        message = self.message if len(self.message) <= MAX_MESSAGE_CHARS else self.message[:MAX_MESSAGE_CHARS] + "..."
        return message.encode("utf-8", "replace").decode("utf-8")

    def _anthropic(self) -> tuple[int, str]:
        if self.code == "overloaded":
            return ANTHROPIC_OVERLOADED, "overloaded_error"
        return self.status, _ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")


def problem_of(error: BaseException) -> Problem:
    """Maps any exception to what the client is told; one that nobody planned for becomes a bare 500 and is logged in full."""
    match error:
        case ContextLengthError():
            return Problem(400, str(error), "invalid_request_error", error.field, "context_length_exceeded")
        case PreviousResponseNotFoundError():
            return Problem(400, str(error), "invalid_request_error", error.field, "previous_response_not_found")
        case InvalidRequestError():
            return Problem(400, str(error), "invalid_request_error", error.field, "invalid_value")
        case ValidationError():
            return _invalid_field(error)
        case ModelNotFoundError():
            return Problem(404, str(error), "invalid_request_error", "model", "model_not_found")
        case ResponseNotFoundError():
            return Problem(404, str(error), "invalid_request_error", "response_id", "response_not_found")
        case UnsupportedByModelError():
            return Problem(400, str(error), "invalid_request_error", "model", "unsupported_by_model")
        case OverloadedError():
            return Problem(503, str(error), "server_error", None, "overloaded", {"Retry-After": "1"})
        case NotReadyError():
            return Problem(503, str(error), "server_error", None, "not_ready", {"Retry-After": "5"})
        case ShuttingDownError():
            return Problem(503, str(error), "server_error", None, "shutting_down", {"Retry-After": "5", "Connection": "close"})
        case EngineDeadError():
            return Problem(500, without_paths(str(error)), "server_error", None, "engine_dead")
        case EngineStateError():
            return Problem(409, str(error), "invalid_request_error", None, "engine_state")
        case CallFailedError() | CheckpointError():
            return Problem(500, without_paths(str(error)), "server_error", None, "call_failed")
        case GenerationFailedError():
            return Problem(500, without_paths(str(error)), "server_error", None, "generation_failed")
        case HTTPException():
            return _http_problem(error)
        case _:
            log.error("unexpected error while answering a request", exc_info=error)
            return Problem(
                500, "The server failed while answering this request; its log has the details.", "server_error", None, "internal_error"
            )


def answer_problem(problem: Problem, path: str) -> Response:
    """The HTTP answer, in the shape of the API that the path belongs to."""
    return problem.anthropic_response() if path.startswith(_ANTHROPIC_PATHS) else problem.response()


def path_of(scope: Scope) -> str:
    """The path of a request, without what a proxy in front has taken off."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


async def answer_error(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for every type."""
    return answer_problem(_problem_at(request, error), path_of(request.scope))


def _problem_at(request: Request, error: Exception) -> Problem:
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.NOT_FOUND:
        return Problem(404, f"There is nothing at {request.url.path}.", "invalid_request_error", None, "not_found")
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(sorted(_methods(request)))
        message = f"{request.method} is not allowed at {request.url.path}: use {allowed}."
        return Problem(405, message, "invalid_request_error", None, "method_not_allowed", {"Allow": allowed})
    return problem_of(error)


def without_paths(text: str) -> str:
    """`text` with the folders of absolute file paths cut off: `/srv/models/a.gguf` becomes `a.gguf`."""
    return _ABSOLUTE_FOLDER.sub("", text)


def shown(value: object) -> str:
    """A short form of a client's value for an error message; never descends into nested JSON, which could be arbitrarily deep."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "an array"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def _methods(request: Request) -> set[str]:
    """Of all routes at the request's path; Starlette names those of the first."""
    matching = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return {method for route in matching for method in route.methods}


def _invalid_field(error: ValidationError) -> Problem:
    first: Any = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    if first["type"] == "missing":
        return Problem(400, f"`{param}` is required.", "invalid_request_error", param, "missing_required_parameter")
    # Our own validators say "must ..."; pydantic's types get the same wording.
    rule = f"must be {_JSON_TYPES[first['type']]}" if first["type"] in _JSON_TYPES else first["msg"].removeprefix("Value error, ")
    return Problem(400, f"`{param}` {rule}, got {shown(first['input'])}.", "invalid_request_error", param, "invalid_value")


def _http_problem(error: HTTPException) -> Problem:
    phrase = HTTPStatus(error.status_code).phrase
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    return Problem(error.status_code, str(error.detail), kind, None, phrase.lower().replace(" ", "_"), error.headers or {})
