"""Objects and events of OpenAI's and Anthropic's APIs, checked against the types of their official packages."""

from __future__ import annotations

import json
from typing import Any, get_args

import httpx
import pydantic
from anthropic.types import RawMessageStreamEvent
from openai.types.responses import ResponseStreamEvent

# What OpenAI sends, but the package leaves out of these types.
_UNDECLARED = {"Response": {"store"}, "Logprob": {"bytes"}, "LogprobTopLogprob": {"bytes"}}


def _by_name(union: Any) -> dict[str, type[pydantic.BaseModel]]:
    members = get_args(get_args(union)[0])
    return {get_args(member.model_fields["type"].annotation)[0]: member for member in members}


RESPONSE_EVENTS = _by_name(ResponseStreamEvent)
MESSAGE_EVENTS = _by_name(RawMessageStreamEvent)


def check(kind: type[pydantic.BaseModel], value: dict[str, Any]) -> Any:
    """The value as `kind`: nothing missing, nothing of the wrong type, nothing that the type does not know."""
    model = kind.model_validate(value, strict=True)
    _no_extras(model)
    return model


def frames(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream: names and data."""
    parts = text.split("\n\n")
    assert parts.pop() == ""
    events: list[tuple[str, dict[str, Any]]] = []
    for part in parts:
        name, data = part.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(name == data["type"] for name, data in events)
    return events


def sent(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """The events of a whole stream that was answered."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return frames(response.text)


def _no_extras(value: Any) -> None:
    if isinstance(value, pydantic.BaseModel):
        assert set(value.model_extra or ()) <= _UNDECLARED.get(type(value).__name__, set()), (type(value), value.model_extra)
        for name in type(value).model_fields:
            _no_extras(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            _no_extras(item)
