"""From the body of POST /v1/responses to a chat completion request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from xlaserve.errors import InvalidRequestError
from xlaserve.server.errors import shown
from xlaserve.server.protocol import ChatCompletionRequest
from xlaserve.server.responses.conversation import chat_messages
from xlaserve.server.responses.items import Item
from xlaserve.server.responses.protocol import LOGPROBS, CreateResponse
from xlaserve.server.translation import Names, chat_request, in_terms_of, shared_fields

NAMES: Names = (
    (re.compile(r"^messages\b.*"), "input"),
    (re.compile(r"^max_(?:completion_)?tokens$"), "max_output_tokens"),
    (re.compile(r"^tools\.(\d+)\.function\b"), r"tools.\1"),
    (re.compile(r"^tool_choice\.function\b"), "tool_choice"),
    (re.compile(r"^response_format\.json_schema\b"), "text.format"),
    (re.compile(r"^response_format\b"), "text.format"),
    (re.compile(r"^reasoning_effort$"), "reasoning.effort"),
)
"""What this API calls the fields of a chat completion request."""

# Parts of OpenAI's service that are not the model's, with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "context_management": ([],),
    "conversation": (),
    "moderation": (),
    "n": (1,),
    "prompt": (),
}
# Hints and bookkeeping that change nothing in the answer.
_HINTS = frozenset({"access_programs", "image", "prompt_cache_options", "prompt_cache_retention", "service_tier"})
_FORMATS = ("text", "json_object", "json_schema")
_CHOICES = ("none", "auto", "required")


def to_chat(body: CreateResponse, items: Sequence[Item]) -> ChatCompletionRequest:
    """The chat completion request that asks for the same.

    Args:
        body: whose `input` is part of `items`.
        items: the whole conversation, the oldest first.

    Raises:
        InvalidRequestError, pydantic.ValidationError: the body asks for something that this server does not have, or is wrong.
    """
    _refuse(body)
    tools, choice = _tools(body)
    wants_logprobs = LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    fields = {
        **shared_fields(body, known=frozenset({*_REFUSED, *_HINTS})),
        "model": body.model,
        "messages": chat_messages(body.instructions, items),
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "logprobs": True if wants_logprobs else None,
        "top_logprobs": body.top_logprobs if wants_logprobs else None,
        "tools": tools or None,
        "tool_choice": choice if tools else None,
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": _response_format(body),
        "reasoning_effort": body.reasoning.effort if body.reasoning is not None else None,
    }
    with in_terms_of(NAMES):
        return chat_request(fields)


def _refuse(body: CreateResponse) -> None:
    for name, harmless in _REFUSED.items():
        value = (body.model_extra or {}).get(name)
        if value is not None and value not in harmless:
            raise InvalidRequestError(f"`{name}` is not supported by this server: leave it out.", field=name, value=value)
    if body.background and body.store is False:
        raise InvalidRequestError("`background` needs `store`: the answer could not be fetched otherwise.", field="background", value=True)


def _response_format(body: CreateResponse) -> dict[str, Any] | None:
    given = body.text.format if body.text is not None else None
    if given is None:
        return None
    match given.get("type"):
        case "text" | "json_object" as kind:
            return {"type": kind}
        case "json_schema":
            for name, kind, wanted in (("name", str, "a string"), ("schema", dict, "an object")):
                if not isinstance(given.get(name), kind):
                    message = f"`text.format.{name}` must be {wanted}, got {shown(given.get(name))}."
                    raise InvalidRequestError(message, field=f"text.format.{name}", value=given.get(name))
            return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}
        case kind:
            message = f"`text.format.type` must be one of {', '.join(_FORMATS)}, got {shown(kind)}."
            raise InvalidRequestError(message, field="text.format.type", value=kind)


def _tools(body: CreateResponse) -> tuple[list[dict[str, Any]], str | dict[str, Any] | None]:
    tools = [_tool(tool, f"tools.{number}") for number, tool in enumerate(body.tools or ())]
    given: str | dict[str, Any] | None = body.tool_choice
    if not isinstance(given, dict):
        if given not in (None, *_CHOICES):
            _refuse_choice(given)
        if given == "required" and not tools:
            raise InvalidRequestError("`tool_choice` must not be required where there are no `tools`.", field="tool_choice", value=given)
        return tools, given
    match given.get("type"):
        case "function":
            return tools, {"type": "function", "function": {"name": _chosen(given, tools, "tool_choice")}}
        case "allowed_tools":
            allowed, mode = given.get("tools"), given.get("mode")
            if mode not in ("auto", "required"):
                message = f"`tool_choice.mode` must be auto or required, got {shown(mode)}."
                raise InvalidRequestError(message, field="tool_choice.mode", value=mode)
            if not isinstance(allowed, list) or not allowed:
                message = f"`tool_choice.tools` must be an array of some of `tools`, got {shown(allowed)}."
                raise InvalidRequestError(message, field="tool_choice.tools", value=allowed)
            names = {_chosen(tool, tools, f"tool_choice.tools.{number}") for number, tool in enumerate(allowed)}
            return [tool for tool in tools if tool["function"]["name"] in names], mode
        case kind:
            return _refuse_choice(kind)


def _refuse_choice(value: object) -> Any:
    message = f"`tool_choice` must be none, auto, required, one function, or allowed functions, got {shown(value)}."
    raise InvalidRequestError(message, field="tool_choice", value=value)


def _chosen(choice: Any, tools: list[dict[str, Any]], path: str) -> str:
    name = choice.get("name") if isinstance(choice, dict) else None
    if not isinstance(name, str) or name not in {tool["function"]["name"] for tool in tools}:
        raise InvalidRequestError(f"`{path}.name` must be the name of one of `tools`, got {shown(name)}.", field=f"{path}.name", value=name)
    return name


def _tool(tool: dict[str, Any], path: str) -> dict[str, Any]:
    kind, name = tool.get("type"), tool.get("name")
    if kind != "function":
        message = f"`{path}.type` must be function: this server calls no tools of its own, got {shown(kind)}."
        raise InvalidRequestError(message, field=f"{path}.type", value=kind)
    if not isinstance(name, str) or not name:
        raise InvalidRequestError(f"`{path}.name` must be a name, got {shown(name)}.", field=f"{path}.name", value=name)
    function = {field: tool[field] for field in ("name", "description", "parameters", "strict") if tool.get(field) is not None}
    return {"type": "function", "function": function}
