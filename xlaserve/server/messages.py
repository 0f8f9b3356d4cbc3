"""Chat messages as clients send them, made into what chat templates expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from xlaserve.errors import InvalidRequestError
from xlaserve.server.errors import shown
from xlaserve.server.settings import ContentFormat

_ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXT_PARTS = ("text", "input_text", "output_text")
# What some templates read besides role and content.
_EXTRAS = ("name", "reasoning", "reasoning_content", "tool_call_id")


def conversation(messages: list[dict[str, Any]], chat_template: str, content_format: ContentFormat = "auto") -> list[dict[str, Any]]:
    """The messages with text only, in as many parts as they have.

    Args:
        messages: of the request, not yet looked into.
        chat_template: the one in use; `developer` messages become `system` ones where it does not mention them.
        content_format: how content is given to the template.

    Raises:
        InvalidRequestError: an unknown role, a part that is not text, content missing, or a malformed call; `field` is the path to it.
    """
    rename_developer = "developer" not in chat_template
    result: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        path = f"messages.{number}"
        role = message.get("role")
        if role not in _ROLES:
            raise InvalidRequestError(
                f"`{path}.role` must be one of {', '.join(_ROLES)}, got {shown(role)}.", field=f"{path}.role", value=role
            )
        if message.get("function_call"):
            raise InvalidRequestError(
                f"`{path}.function_call` is not supported by this server: use `tool_calls`.", field=f"{path}.function_call"
            )
        plain: dict[str, Any] = {"role": "system" if role == "developer" and rename_developer else role}
        plain["content"] = _content(message.get("content"), f"{path}.content", content_format, optional=role in ("assistant", "tool"))
        plain |= {name: message[name] for name in _EXTRAS if isinstance(message.get(name), str)}
        if calls := message.get("tool_calls"):
            if role != "assistant" or not isinstance(calls, list):
                raise InvalidRequestError(
                    f"`{path}.tool_calls` must be an array, in an assistant's message only.", field=f"{path}.tool_calls", value=calls
                )
            plain["tool_calls"] = [_call(call, f"{path}.tool_calls.{place}") for place, call in enumerate(calls)]
        result.append(plain)
    return result


def text_size(messages: list[dict[str, Any]]) -> int:
    """Characters in a conversation, about."""
    return sum(
        len(content) if isinstance(content, str) else sum(len(part["text"]) for part in content)
        for content in (message["content"] for message in messages)
    )


def _call(call: object, path: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise InvalidRequestError(
            f'`{path}` must be an object with `id`, `type` "function" and `function`, got {shown(call)}.', field=path, value=call
        )
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise InvalidRequestError(
            f"`{path}.function.name` must be a non-empty string, got {shown(name)}.", field=f"{path}.function.name", value=name
        )
    if arguments is not None and not isinstance(arguments, str | Mapping):
        raise InvalidRequestError(
            f"`{path}.function.arguments` must be a string of JSON, got {shown(arguments)}.",
            field=f"{path}.function.arguments",
            value=arguments,
        )
    plain: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": _arguments(arguments)}}
    return {"id": call["id"], **plain} if isinstance(call.get("id"), str) else plain


def _arguments(arguments: str | Mapping[str, Any] | None) -> Any:
    """Arguments as templates want them, which go through their keys; text stays text where a model wrote no object."""
    if not isinstance(arguments, str):
        return arguments or {}
    try:
        value = orjson.loads(arguments) if arguments.strip() else {}
    except orjson.JSONDecodeError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _content(content: object, path: str, content_format: ContentFormat, *, optional: bool) -> str | list[dict[str, str]]:
    if content is None and optional:
        content = ""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content_format == "openai" else content
    if not isinstance(content, list):
        raise InvalidRequestError(f"`{path}` must be a string or an array of text parts, got {shown(content)}.", field=path, value=content)
    texts = [_part(part, f"{path}.{number}") for number, part in enumerate(content)]
    return "\n".join(texts) if content_format == "string" else [{"type": "text", "text": text} for text in texts]


def _part(part: object, path: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise InvalidRequestError(f"`{path}` must be an object with `type` and `text`, got {shown(part)}.", field=path, value=part)
    kind, text = part.get("type"), part.get("text")
    if kind not in _TEXT_PARTS:
        message = f"`{path}.type` must be one of {', '.join(_TEXT_PARTS)}: this model reads text only, got {shown(kind)}."
        raise InvalidRequestError(message, field=f"{path}.type", value=kind)
    if not isinstance(text, str):
        raise InvalidRequestError(f"`{path}.text` must be a string, got {shown(text)}.", field=f"{path}.text", value=text)
    return text
