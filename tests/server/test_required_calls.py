"""Required tool calls and budgets of reasoning on a real engine: a model that knows of neither keeps to them, having no choice."""

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
        with live_server(engine, chat=ChatSettings(template=TEMPLATE, reasoning_parser="qwen3", trust_request_template=True)) as server:
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


def test_a_budget_ends_reasoning(live: Live) -> None:
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    opened = {**asked, "chat_template": TEMPLATE + "<think>"}

    def ask(body: dict[str, Any], **fields: Any) -> tuple[str, str, int]:
        answer = live.client.post(CHAT, json={**body, **fields}).json()
        message = answer["choices"][0]["message"]
        tokens: int = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
        return message.get("reasoning", ""), message["content"], tokens

    free, nothing, all_tokens = ask(opened)
    assert (nothing, all_tokens) == ("", 60)
    for budget in (0, 5, 20):
        reasoning, content, tokens = ask(opened, thinking_token_budget=budget)
        assert free.startswith(reasoning)
        assert content
        # The marker is text to this model, a few tokens long, of which all but the last come before the reasoning has ended.
        assert budget <= tokens < budget + len("</think>")
    assert ask(opened, thinking_token_budget=-1) == (free, "", 60)
    reasoning, content, _ = ask(opened, thinking_token_budget=5, response_format={"type": "json_object"}, ignore_eos=False)
    assert free.startswith(reasoning)
    assert content.startswith("{")
    # Where the model does not reason, nothing is ended.
    assert "</think>" not in ask(asked, thinking_token_budget=5)[1]
    assert ask(asked, thinking_token_budget=5)[1][:9] == ask(asked)[1][:9]
