"""Reads server-sent events strictly, as the specification and OpenAI's clients do."""

from __future__ import annotations

import json
from typing import Any

import httpx


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON events of a complete stream, which must be well-formed and end with [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = response.text.split("\n\n")
    assert frames.pop() == ""
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def texts(chunks: list[dict[str, Any]]) -> dict[int, str]:
    """The text of each choice, put together."""
    result: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            piece = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            result[choice["index"]] = result.get(choice["index"], "") + piece
    return result


def logprobs(chunks: list[dict[str, Any]]) -> dict[int, dict[str, list[Any]]]:
    """The lists of log probabilities of each choice, put together; without those that hold nothing."""
    result: dict[int, dict[str, list[Any]]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        for name, values in (choice["logprobs"] or {}).items():
            if values is not None:
                result.setdefault(choice["index"], {}).setdefault(name, []).extend(values)
    return result


def endings(chunks: list[dict[str, Any]]) -> dict[int, tuple[str, Any]]:
    """Finish reason and stop reason of each choice; fails where a choice ends twice or says something afterwards."""
    result: dict[int, tuple[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            assert choice["index"] not in result
            if choice["finish_reason"] is not None:
                result[choice["index"]] = (choice["finish_reason"], choice["stop_reason"])
    return result
