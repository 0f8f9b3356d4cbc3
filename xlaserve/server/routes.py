"""One line of the application's table of routes: what it serves, and everything that openapi.json says about it.

The endpoints read bodies themselves, with their own limits and errors, so FastAPI cannot derive these things; a route declares them, and
tests/server/test_schema.py holds its answers to the declaration.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from xlaserve.server.answer_models import ErrorAnswer
from xlaserve.server.errors import ANTHROPIC_OVERLOADED

Endpoint = Callable[[Request], Awaitable[Response]]

JSON = "application/json"
EVENTS = "text/event-stream"
_READS = (400, 413, 415)
_EVENT = {
    "type": "object",
    "description": "Each event; its data is JSON, or [DONE] at the end.",
    "required": ["data"],
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
}

NEEDS_ENGINE = (500, 503)
"""What every route answers with that asks the engine: it has died, is loading, is stopping or has too much to do."""

GENERATES = (*NEEDS_ENGINE, 404, 429)
"""What routes answer with that take a body which names a model, and generate."""


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint and its documentation.

    Args:
        method: of the request; what takes GET takes HEAD too.
        path: as Starlette writes it.
        endpoint: called with the request.
        body: what it reads as JSON; brings 400, 413 and 415.
        answer: what it gives with a 200: a model for JSON, a media type, or None for an empty body.
        events: whether it gives server-sent events where the body's `stream` is true.
        query: names and allowed values of parameters in the query, none of which is required; no values where they cannot be listed.
        alike: further statuses whose answers look like that with a 200.
        statuses: errors that it answers with.
        error: the shape of the errors.
        guarded: whether an API key is needed where the server has one, which brings 401.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    endpoint: Endpoint
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | str | None = JSON
    events: bool = False
    query: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    alike: tuple[int, ...] = ()
    statuses: tuple[int, ...] = ()
    error: type[BaseModel] = ErrorAnswer
    guarded: bool = True

    def add_to(self, app: FastAPI) -> None:
        """Serve it."""
        options: dict[str, Any] = {"response_class": Response, "response_model": None}
        app.add_api_route(
            self.path,
            self.endpoint,
            methods=[self.method],
            responses=self._responses(),
            openapi_extra=self._request(),
            **options,
        )
        if self.method == "GET":
            app.add_api_route(self.path, self.endpoint, methods=["HEAD"], include_in_schema=False, **options)

    def _responses(self) -> dict[int | str, dict[str, Any]]:
        statuses = {*self.statuses, *(_READS if self.body else ()), *((400,) if self.query else ()), *((401,) if self.guarded else ())}
        errors: dict[int | str, dict[str, Any]] = {
            status: {"model": self.error, "description": _phrase(status)} for status in sorted(statuses)
        }
        content: dict[str, Any] = {}
        if isinstance(self.answer, str):
            content[self.answer] = {"schema": {} if self.answer == JSON else {"type": "string"}}
        elif self.answer is not None:
            content[JSON] = {"schema": _reference(self.answer)}
        if self.events:
            content[EVENTS] = {"schema": _EVENT}
        own = {status: {"description": _phrase(status), "content": content} for status in (200, *self.alike)}
        return {**own, **errors}

    def _request(self) -> dict[str, Any]:
        parameters: list[dict[str, Any]] = [
            {"name": name, "in": "query", "required": False, "schema": {"type": "string", **({"enum": list(values)} if values else {})}}
            for name, values in self.query.items()
        ]
        for piece in self.path.split("/"):
            if piece.startswith("{"):
                name = piece.strip("{}").partition(":")[0]
                parameters.append({"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}})
        request: dict[str, Any] = {"parameters": parameters} if parameters else {}
        if self.body is not None:
            request["requestBody"] = {"required": True, "content": {JSON: {"schema": _reference(self.body)}}}
        return request


def document(app: FastAPI, routes: Sequence[Route]) -> dict[str, Any]:
    """openapi.json: FastAPI's, with the models that routes name."""
    content = FastAPI.openapi(app)
    schemas = content.setdefault("components", {}).setdefault("schemas", {})
    for route in routes:
        for model in (route.body, route.answer):
            if isinstance(model, type) and model.__name__ not in schemas:
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update(schema.pop("$defs", {}))
                schemas[model.__name__] = schema
    return content


def _phrase(status: int) -> str:
    return "Overloaded" if status == ANTHROPIC_OVERLOADED else HTTPStatus(status).phrase


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
