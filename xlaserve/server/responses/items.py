"""The items that conversations of /v1/responses consist of, in the one form in which they are kept and listed: with ids and content parts.

Texts, calls of functions, their outputs and reasoning are known. Items of OpenAI's own tools, images and files are refused.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from xlaserve.errors import InvalidRequestError
from xlaserve.server.errors import shown

Item = dict[str, Any]

_REFERENCE = "item_reference"
_ROLES = ("user", "assistant", "system", "developer")
_STATUSES = ("in_progress", "completed", "incomplete")
_TEXT_PARTS = ("input_text", "output_text", "text")


def new_id(prefix: str) -> str:
    """A new id of an item or a response."""
    return f"{prefix}_{uuid.uuid4().hex}"


def input_items(given: str | list[Item], find: Callable[[str], Item | None]) -> list[Item]:
    """The items of a request's `input`; one without an id gets one.

    Args:
        given: not yet looked into.
        find: gives the item that a reference names, where it is kept.

    Raises:
        InvalidRequestError: an item is of a kind that this server does not know, or lacks something; `field` is the path to it.
    """
    if isinstance(given, str):
        return [_message({"role": "user", "content": given}, "input")]
    return [_item(item, f"input.{number}", find) for number, item in enumerate(given)]


def _item(item: Item, path: str, find: Callable[[str], Item | None]) -> Item:
    kind = item.get("type") or ("message" if "role" in item else _REFERENCE if "id" in item else None)
    if kind == _REFERENCE:
        found = find(_string(item, "id", path))
        if found is None:
            message = f"`{path}.id`: the item {shown(item['id'])} is not kept here (any more): send the item itself."
            raise InvalidRequestError(message, field=f"{path}.id", value=item["id"])
        return found
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        known = ", ".join((*_READERS, _REFERENCE))
        raise InvalidRequestError(f"`{path}.type` must be one of {known}, got {shown(kind)}.", field=f"{path}.type", value=kind)
    return reader(item, path)


def _message(item: Item, path: str) -> Item:
    role = item.get("role")
    if role not in _ROLES:
        message = f"`{path}.role` must be one of {', '.join(_ROLES)}, got {shown(role)}."
        raise InvalidRequestError(message, field=f"{path}.role", value=role)
    texts = _texts(item.get("content"), f"{path}.content")
    head = {"type": "message", "id": _id(item, "msg"), "role": role, "status": _status(item)}
    if role == "assistant":
        return {**head, "content": [{"type": "output_text", "text": text, "annotations": []} for text in texts]}
    return {**head, "content": [{"type": "input_text", "text": text} for text in texts]}


def _function_call(item: Item, path: str) -> Item:
    return {
        "type": "function_call",
        "id": _id(item, "fc"),
        "call_id": _string(item, "call_id", path),
        "name": _string(item, "name", path),
        "arguments": _string(item, "arguments", path),
        "status": _status(item),
    }


def _function_call_output(item: Item, path: str) -> Item:
    output = item.get("output")
    if not isinstance(output, str):
        output = [{"type": "input_text", "text": text} for text in _texts(output, f"{path}.output")]
    head = {"type": "function_call_output", "id": _id(item, "fco"), "call_id": _string(item, "call_id", path)}
    return {**head, "output": output, "status": _status(item)}


def _reasoning(item: Item, path: str) -> Item:
    parts = item.get("content") or item.get("summary") or []
    texts = _texts(parts, f"{path}.content", kinds=("reasoning_text", "summary_text"))
    content = [{"type": "reasoning_text", "text": text} for text in texts]
    return {"type": "reasoning", "id": _id(item, "rs"), "summary": [], "content": content, "status": _status(item)}


_READERS: dict[str, Callable[[Item, str], Item]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_call_output,
    "reasoning": _reasoning,
}


def _texts(content: object, path: str, *, kinds: tuple[str, ...] = _TEXT_PARTS) -> list[str]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise InvalidRequestError(f"`{path}` must be a string or an array of parts, got {shown(content)}.", field=path, value=content)
    return [_text(part, f"{path}.{number}", kinds) for number, part in enumerate(content)]


def _text(part: object, path: str, kinds: tuple[str, ...]) -> str:
    if not isinstance(part, dict):
        raise InvalidRequestError(f"`{path}` must be an object with `type` and `text`, got {shown(part)}.", field=path, value=part)
    kind = part.get("type")
    if kind == "refusal" and kinds is _TEXT_PARTS:
        return _string(part, "refusal", path)
    if kind not in kinds:
        message = f"`{path}.type` must be one of {', '.join(kinds)}: this model reads text only, got {shown(kind)}."
        raise InvalidRequestError(message, field=f"{path}.type", value=kind)
    return _string(part, "text", path)


def _string(item: Item, name: str, path: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise InvalidRequestError(f"`{path}.{name}` must be a string, got {shown(value)}.", field=f"{path}.{name}", value=value)
    return value


def _id(item: Item, prefix: str) -> str:
    given = item.get("id")
    return given if isinstance(given, str) and given else new_id(prefix)


def _status(item: Item) -> str:
    status = item.get("status")
    return status if status in _STATUSES else "completed"
