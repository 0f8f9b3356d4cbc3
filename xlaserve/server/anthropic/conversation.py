"""From Anthropic's messages, whose content is blocks, to chat messages.

Results of tools are messages of their own there, calls and thoughts are fields of the assistant's message. Consecutive messages of one
role are one turn, as in Anthropic's API. Images and documents are refused.
"""

from __future__ import annotations

from typing import Any

from xlaserve.errors import InvalidRequestError
from xlaserve.server.errors import shown
from xlaserve.server.translation import as_json

Message = dict[str, Any]

_ROLES = ("user", "assistant", "system")


def chat_messages(system: str | list[dict[str, Any]] | None, messages: list[Message]) -> list[Message]:
    """The messages of a chat completion request.

    Args:
        system: what the conversation begins with.
        messages: of the request, not yet looked into.

    Raises:
        InvalidRequestError: something malformed, or that a model of texts cannot read; `field` is the path to it.
    """
    result: list[Message] = []
    if system:
        text = system if isinstance(system, str) else "\n".join(_text(block, f"system.{number}") for number, block in enumerate(system))
        result.append({"role": "system", "content": text})
    for number, message in enumerate(messages):
        path = f"messages.{number}"
        role = message.get("role")
        if role not in _ROLES:
            named = f"{path}.role"
            raise InvalidRequestError(f"`{named}` must be user or assistant, got {shown(role)}.", field=named, value=role)
        for turn in _assistant(message, path) if role == "assistant" else _user(role, message, path):
            _append(result, turn)
    return result


def _append(result: list[Message], turn: Message) -> None:
    last = result[-1] if result else None
    if last is None or last["role"] != turn["role"] or turn["role"] == "tool":
        result.append(turn)
        return
    for name in ("content", "reasoning"):
        last_text, text = last.get(name), turn.get(name)
        if text:
            last[name] = f"{last_text}\n{text}" if last_text else text
    if turn.get("tool_calls"):
        last["tool_calls"] = [*last.get("tool_calls", ()), *turn["tool_calls"]]


def _user(role: str, message: Message, path: str) -> list[Message]:
    turns: list[Message] = []
    for block, where in _blocks(message, path):
        if block.get("type") == "tool_result":
            content = _result(block.get("content"), f"{where}.content")
            turns.append({"role": "tool", "tool_call_id": _string(block, "tool_use_id", where), "content": content})
        else:
            _append(turns, {"role": role, "content": _text(block, where, "text, tool_result")})
    if not turns:
        raise InvalidRequestError(f"`{path}.content` must not be empty.", field=f"{path}.content", value=[])
    return turns


def _assistant(message: Message, path: str) -> list[Message]:
    turn: Message = {"role": "assistant", "content": None}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block, where in _blocks(message, path):
        match block.get("type"):
            case "tool_use":
                calls.append(_call(block, where))
            case "thinking":
                thoughts.append(_string(block, "thinking", where))
            case "redacted_thinking":
                pass  # of another server: nobody here can read it
            case _:
                texts.append(_text(block, where, "text, thinking, redacted_thinking, tool_use"))
    if texts:
        turn["content"] = "".join(texts)
    if any(thoughts):
        turn["reasoning"] = "\n".join(thoughts)
    if calls:
        turn["tool_calls"] = calls
    return [turn]


def _call(block: dict[str, Any], path: str) -> dict[str, Any]:
    given = block.get("input")
    if not isinstance(given, dict):
        raise InvalidRequestError(f"`{path}.input` must be an object, got {shown(given)}.", field=f"{path}.input", value=given)
    function = {"name": _string(block, "name", path), "arguments": as_json(given, f"{path}.input").decode()}
    return {"id": _string(block, "id", path), "type": "function", "function": function}


def _result(content: object, path: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise InvalidRequestError(f"`{path}` must be a string or an array of text blocks, got {shown(content)}.", field=path, value=content)
    return "\n".join(_text(block, f"{path}.{number}") for number, block in enumerate(content))


def _blocks(message: Message, path: str) -> list[tuple[dict[str, Any], str]]:
    content, path = message.get("content"), f"{path}.content"
    if isinstance(content, str):
        return [({"type": "text", "text": content}, path)]
    if not isinstance(content, list):
        raise InvalidRequestError(f"`{path}` must be a string or an array of blocks, got {shown(content)}.", field=path, value=content)
    for number, block in enumerate(content):
        if not isinstance(block, dict):
            named = f"{path}.{number}"
            raise InvalidRequestError(f"`{named}` must be an object with a `type`, got {shown(block)}.", field=named, value=block)
    return [(block, f"{path}.{number}") for number, block in enumerate(content)]


def _text(block: object, path: str, known: str = "text") -> str:
    if not isinstance(block, dict):
        raise InvalidRequestError(f"`{path}` must be an object with `type` and `text`, got {shown(block)}.", field=path, value=block)
    if block.get("type") != "text":
        kind = block.get("type")
        message = f"`{path}.type` must be one of {known}: this model reads text only, got {shown(kind)}."
        raise InvalidRequestError(message, field=f"{path}.type", value=kind)
    return _string(block, "text", path)


def _string(block: dict[str, Any], name: str, path: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise InvalidRequestError(f"`{path}.{name}` must be a string, got {shown(value)}.", field=f"{path}.{name}", value=value)
    return value
