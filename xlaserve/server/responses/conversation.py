"""From the items of a conversation to chat messages: what a model said in one turn, in whatever items, is one assistant message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xlaserve.server.responses.items import Item


def chat_messages(instructions: str | None, items: Sequence[Item]) -> list[dict[str, Any]]:
    """The messages of a chat completion request.

    Args:
        instructions: of this request, put before everything; a system or developer message that opens the conversation is appended to it,
            since many chat templates know one such message only.
        items: as `responses.items` makes them, the oldest first.
    """
    messages: list[dict[str, Any]] = [] if instructions is None else [{"role": "system", "content": instructions}]
    for item in items:
        match item["type"]:
            case "message" if item["role"] == "assistant":
                _assistant(messages, "content")["content"] = _text(item["content"])
            case "message":
                _add(messages, item["role"], _text(item["content"]), instructions)
            case "reasoning":
                _assistant(messages, "reasoning", "content", "tool_calls")["reasoning"] = _text(item["content"])
            case "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                calls = _assistant(messages).setdefault("tool_calls", [])
                calls.append({"id": item["call_id"], "type": "function", "function": function})
            case _:
                output = item["output"] if isinstance(item["output"], str) else _text(item["output"])
                messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": output})
    return messages


def _add(messages: list[dict[str, Any]], role: str, text: str, instructions: str | None) -> None:
    if instructions is not None and len(messages) == 1 and role in ("system", "developer"):
        messages[0]["content"] += f"\n\n{text}"
    else:
        messages.append({"role": role, "content": text})


def _assistant(messages: list[dict[str, Any]], *taken: str) -> dict[str, Any]:
    """The message of the turn that is being told, or a new one where it has any of `taken` already."""
    if not messages or messages[-1]["role"] != "assistant" or any(messages[-1].get(name) for name in taken):
        messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _text(parts: Sequence[dict[str, Any]]) -> str:
    return "\n".join(part["text"] for part in parts)
