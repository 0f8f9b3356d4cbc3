"""Tools and reasoning through /v1/responses and /v1/messages, from a model's text to the official clients' objects and back."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import pytest
from anthropic import Anthropic
from anthropic.types import Message
from openai import OpenAI
from openai.types.responses import Response

from tests.server.live import TIMEOUT, Live, live_server
from tests.server.saying_engine import SayingEngine
from tests.server.strict import MESSAGE_EVENTS, RESPONSE_EVENTS, check, sent
from tests.server.test_message_events import put_together as message_of
from tests.server.test_response_events import put_together as output_of

MODEL = "saying/model"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: Any = {"type": "function", "name": "weather", "parameters": SCHEMA}
TOOL: Any = {"name": "weather", "input_schema": SCHEMA}
SAYS = ["hello", "weather", "twice"]


@pytest.fixture(scope="module")
def saying() -> Generator[Live]:
    with live_server(SayingEngine()) as live:
        yield live


def nameless(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in item.items() if name not in ("id", "call_id")} for item in items]


@pytest.mark.parametrize("said", SAYS)
def test_streamed_response_equals_whole(saying: Live, said: str) -> None:
    body = {"input": said, "tools": [FUNCTION]}
    whole = saying.client.post("/v1/responses", json=body).json()
    check(Response, whole)
    events = sent(saying.client.post("/v1/responses", json={**body, "stream": True}))
    for name, data in events:
        check(RESPONSE_EVENTS[name], data)
    last = events[-1][1]["response"]
    assert output_of(events) == last["output"]
    assert nameless(last["output"]) == nameless(whole["output"])
    assert last["usage"] == whole["usage"]
    assert last["status"] == whole["status"] == "completed"


@pytest.mark.parametrize("said", SAYS)
def test_streamed_message_equals_whole(saying: Live, said: str) -> None:
    body = {"messages": [{"role": "user", "content": said}], "tools": [TOOL], "max_tokens": 200}
    whole = saying.client.post("/v1/messages", json=body).json()
    check(Message, whole)
    events = sent(saying.client.post("/v1/messages", json={**body, "stream": True}))
    for name, data in events:
        if name != "ping":
            check(MESSAGE_EVENTS[name], data)
    streamed = message_of(events)
    assert nameless(streamed.pop("content")) == nameless(whole.pop("content"))
    assert {**streamed, "id": None} == {**whole, "id": None}


def test_a_tool_is_called_and_answered(saying: Live) -> None:
    with OpenAI(base_url=f"{saying.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT) as client:
        first = client.responses.create(model=MODEL, input="weather", tools=[FUNCTION])
        reasoning, call = first.output
        assert reasoning.type == "reasoning"
        assert call.type == "function_call"
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Oslo"})
        assert first.usage is not None
        assert first.usage.output_tokens_details.reasoning_tokens > 0
        output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
        second = client.responses.create(model=MODEL, input=[output], previous_response_id=first.id, tools=[FUNCTION])
        assert second.output_text == "It rains."
        referred: Any = [
            {"role": "user", "content": "weather"},
            *({"type": "item_reference", "id": item.id} for item in first.output),
            output,
        ]
        assert client.responses.create(model=MODEL, input=referred, tools=[FUNCTION]).output_text == "It rains."


def test_a_tool_is_used_and_answered(saying: Live) -> None:
    with Anthropic(base_url=saying.url, api_key="none", max_retries=0, timeout=TIMEOUT) as client:
        messages: Any = [{"role": "user", "content": "twice"}]
        first = client.messages.create(model=MODEL, messages=messages, tools=[TOOL], max_tokens=300)
        text, *calls = first.content
        assert text.type == "text"
        assert text.text.strip() == "Two of them:"
        assert [(call.name, call.input) for call in calls if call.type == "tool_use"] == [("weather", {"city": "Oslo"})] * 2
        assert first.stop_reason == "tool_use"
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": "Rain."} for call in calls if call.type == "tool_use"]
        assert len({result["tool_use_id"] for result in results}) == 2
        messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
        second = client.messages.create(model=MODEL, messages=messages, tools=[TOOL], max_tokens=300)
        assert [block.text for block in second.content if block.type == "text"] == ["It rains."]


@pytest.mark.parametrize("most", range(1, 100, 7))
def test_cut_off_anywhere(saying: Live, most: int) -> None:
    body = {"input": "weather", "tools": [FUNCTION], "max_output_tokens": most}
    whole = saying.client.post("/v1/responses", json=body).json()
    events = sent(saying.client.post("/v1/responses", json={**body, "stream": True}))
    last = events[-1][1]["response"]
    assert output_of(events) == last["output"]
    assert nameless(last["output"]) == nameless(whole["output"])
    assert last["status"] == whole["status"]
