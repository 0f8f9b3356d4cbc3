"""Chat messages as clients send them, made into what chat templates expect: a role and one text."""

from __future__ import annotations

from typing import Any

from xlaserve.errors import InvalidRequestError
from xlaserve.server.errors import shown

_ROLES = ("system", "developer", "user", "assistant")
_TEXT_PARTS = ("text", "input_text", "output_text")
# What some templates read besides role and content.
_EXTRAS = ("name", "reasoning", "reasoning_content")


def conversation(messages: list[dict[str, Any]], chat_template: str | None) -> list[dict[str, str]]:
    """The messages with their text parts joined by newlines, as vLLM does for templates that take strings.

    Args:
        messages: of the request, not yet looked into.
        chat_template: the model's; `developer` messages become `system` ones where it does not mention them.

    Raises:
        InvalidRequestError: an unknown role, a part that is not text, or content missing; `field` is the path to it.
    """
    rename_developer = "developer" not in (chat_template or "")
    result: list[dict[str, str]] = []
    for number, message in enumerate(messages):
        path = f"messages.{number}"
        role = message.get("role")
        if role not in _ROLES:
            raise InvalidRequestError(
                f"`{path}.role` must be one of {', '.join(_ROLES)}, got {shown(role)}.", field=f"{path}.role", value=role
            )
        for name in ("tool_calls", "function_call"):
            if message.get(name):
                raise InvalidRequestError(f"`{path}.{name}` is not supported by this server: leave it out.", field=f"{path}.{name}")
        plain = {"role": "system" if role == "developer" and rename_developer else role}
        plain["content"] = _text(message.get("content"), f"{path}.content", optional=role == "assistant")
        plain |= {name: message[name] for name in _EXTRAS if isinstance(message.get(name), str)}
        result.append(plain)
    return result


def _text(content: object, path: str, *, optional: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and optional:
        return ""
    if not isinstance(content, list):
        raise InvalidRequestError(f"`{path}` must be a string or an array of text parts, got {shown(content)}.", field=path, value=content)
    return "\n".join(_part(part, f"{path}.{number}") for number, part in enumerate(content))


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
