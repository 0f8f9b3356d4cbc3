"""Required tool calls on a real engine: a model that knows nothing of tools calls them, since nothing else is left to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.conftest import TINY_ENGINE
from tests.server.live import TIMEOUT, Live, live_server
from tests.server.sse import events
from tests.server.test_tools import CHAT, calls_of, message_of
from xlaserve import AsyncLLM
from xlaserve.server.settings import ChatSettings

TEMPLATE = "{# tools #}{% for m in messages %}{{ m.content }}{% endfor %}"
PLACE = {"type": "object", "properties": {"at": {"$ref": "#/$defs/p"}}, "required": ["at"], "additionalProperties": False}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "go", "parameters": {**PLACE, "$defs": {"p": {"enum": ["Oslo", "Rome"]}}}}},
    {"type": "function", "function": {"name": "eat", "parameters": {**PLACE, "$defs": {"p": {"type": "boolean"}}}}},
]
VALUES = {"go": ("Oslo", "Rome"), "eat": (True, False)}


@pytest.fixture(scope="module")
def live(tiny_model: Callable[[str], Path]) -> Generator[Live]:
    engine = AsyncLLM(str(tiny_model("llama3")), **TINY_ENGINE)
    try:
        # The little room that the tiny model has is kept for the answer.
        with live_server(engine, chat=ChatSettings(template=TEMPLATE)) as server:
            yield server
    finally:
        asyncio.run(engine.close())


@pytest.mark.parametrize("choice", ["required", "go", "eat"])
def test_calls_fit_the_schema(live: Live, choice: str) -> None:
    tool_choice: Any = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": TOOLS,
        "tool_choice": tool_choice,
        "parallel_tool_calls": False,
        "temperature": 1,
        "seed": 3,
    }
    whole = live.client.post(CHAT, json=body).json()["choices"][0]
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] is None
    ((name, arguments),) = calls_of(whole["message"])
    assert choice in ("required", name)
    assert json.loads(arguments)["at"] in VALUES[name]
    streamed = message_of(events(live.client.post(CHAT, json={**body, "stream": True})))
    assert streamed["calls"] == [(name, arguments)]


def test_openai_client_streams_required_calls(live: Live) -> None:
    with (
        OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT) as client,
        client.chat.completions.stream(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": "hi"}],
            tools=TOOLS,
            tool_choice="required",
            parallel_tool_calls=False,
            seed=5,
        ) as stream,
    ):
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    (call,) = final.message.tool_calls or []
    assert json.loads(call.function.arguments)["at"] in VALUES[call.function.name]
