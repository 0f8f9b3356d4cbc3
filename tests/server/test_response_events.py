"""The events of a response are OpenAI's, in OpenAI's order, and add up to the response."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, cast

import pytest
from openai.types.responses import Response

from tests.server.scripted_chat import TEXT, TURN, ScriptedChat, one_by_one, run
from tests.server.scripted_engine import ByteTokenizer, ScriptedEngine
from tests.server.strict import RESPONSE_EVENTS, check, frames
from xlaserve.server.chat_run import ChatRun
from xlaserve.server.errors import GenerationFailedError
from xlaserve.server.logprobs import LogprobWriter
from xlaserve.server.parsing.events import Content, OutputEvent, Reasoning
from xlaserve.server.responses.head import response_head
from xlaserve.server.responses.protocol import CreateResponse
from xlaserve.server.responses.run import ResponseRun

Events = list[tuple[str, dict[str, Any]]]

TOLD = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.reasoning_text.delta",
    "response.reasoning_text.delta",
    "response.reasoning_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
    "response.completed",
]


def of(chat: ScriptedChat, *, top: int | None = None, **fields: Any) -> ResponseRun:
    head = response_head(CreateResponse.model_validate({"input": "hi", **fields}), ScriptedEngine())
    return ResponseRun(head, cast(ChatRun, chat), LogprobWriter(ByteTokenizer(), top, chat=True))


async def told(response: ResponseRun) -> Events:
    """All events, each checked against its type, numbered from 0."""
    async with aclosing(response.events()) as steps:
        text = "".join([frame.decode() async for batch in steps for frame in batch])
    events = frames(text)
    for number, (name, data) in enumerate(events):
        check(RESPONSE_EVENTS[name], data)
        assert data["sequence_number"] == number
    return events


def put_together(events: Events) -> list[dict[str, Any]]:
    """The output as the deltas tell it; fails where `done` events, ids or places say something else."""
    items: list[dict[str, Any]] = []
    for name, data in events:
        if name == "response.output_item.added":
            assert data["output_index"] == len(items)
            assert data["item"]["status"] == "in_progress"
            items.append({**data["item"], "said": ""})
        elif name == "response.output_item.done":
            item, said = items[data["output_index"]], items[data["output_index"]].pop("said")
            assert (data["item"]["id"], data["item"]["type"]) == (item["id"], item["type"])
            whole = data["item"]["arguments"] if item["type"] == "function_call" else data["item"]["content"][0]["text"]
            assert whole == said
            items[data["output_index"]] = data["item"]
        elif "item_id" in data:
            item = items[data["output_index"]]
            assert data["item_id"] == item["id"]
            assert data.get("content_index", 0) == 0
            item["said"] += data.get("delta", "")
            if name in ("response.output_text.done", "response.reasoning_text.done"):
                assert data["text"] == item["said"]
            if name == "response.function_call_arguments.done":
                assert data["arguments"] == item["said"]
            if name == "response.content_part.done":
                assert data["part"]["text"] == item["said"]
    assert all("said" not in item for item in items)
    return items


def test_events_in_order() -> None:
    response = of(ScriptedChat(one_by_one(TURN), "tool_calls"))
    events = run(told(response))
    assert [name for name, _ in events] == TOLD
    assert events[-1][1]["response"] == response.response()
    assert put_together(events) == response.items()
    assert [item["type"] for item in response.items()] == ["reasoning", "message", "function_call", "function_call"]
    assert [item["status"] for item in response.items()] == ["completed"] * 4
    calls = [(item["call_id"], item["name"], item["arguments"]) for item in response.items()[2:]]
    assert calls == [("call_a", "look", '{"at": "it"}'), ("call_b", "wait", "{}")]


@pytest.mark.parametrize("events", [TURN, TEXT, [], [Reasoning("so")]])
def test_however_it_comes(events: list[OutputEvent]) -> None:
    def said(steps: list[list[OutputEvent]]) -> Any:
        response = of(ScriptedChat(steps))
        run(told(response))
        return [{**item, "id": None} for item in response.items()]

    assert said([events]) == said(one_by_one(events) or [[]])


def test_the_response_before_and_after() -> None:
    response = of(ScriptedChat(one_by_one(TEXT)), metadata={"a": "b"}, reasoning={"effort": "low"}, user="me")
    before = check(Response, response.response())
    assert (before.status, before.output, before.usage, before.metadata) == ("in_progress", [], None, {"a": "b"})
    events = run(told(response))
    assert [data["response"]["status"] for _, data in events[:2]] == ["in_progress"] * 2
    after = check(Response, response.response())
    assert after.status == "completed"
    assert after.completed_at is not None
    assert after.output_text == "Hello"
    usage = after.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (10, 7, 17)
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (4, 3)


def test_cut_short() -> None:
    response = of(ScriptedChat(one_by_one(TURN[:7]), "length"))
    events = run(told(response))
    assert events[-1][0] == "response.incomplete"
    after = check(Response, response.response())
    assert after.incomplete_details.reason == "max_output_tokens"
    assert after.completed_at is None
    assert [item.status for item in after.output] == ["completed", "completed", "incomplete"]
    assert after.output[-1].arguments == '{"at": '


def test_says_nothing() -> None:
    response = of(ScriptedChat([[]]))
    events = run(told(response))
    assert check(Response, response.response()).output_text == ""
    assert put_together(events) == response.items()


@pytest.mark.parametrize("chat", [ScriptedChat([[Content("a")]], failure=GenerationFailedError("no luck")), ScriptedChat([TEXT], "abort")])
def test_fails(chat: ScriptedChat) -> None:
    response = of(chat)
    events = run(told(response))
    assert [name for name, _ in events[-2:]] == ["error", "response.failed"]
    assert events[-2][1]["code"] == "generation_failed"
    after = check(Response, events[-1][1]["response"])
    assert after.status == "failed"
    assert after.error.message == events[-2][1]["message"]
    assert isinstance(response.error, GenerationFailedError)
    assert chat.aborts


def test_abandoned() -> None:
    chat = ScriptedChat(one_by_one(TEXT))
    response = of(chat)

    async def begin() -> None:
        async with aclosing(response.events()) as steps:
            async for _ in steps:
                if response.items():
                    return

    run(begin())
    after = check(Response, response.response())
    assert after.status == "cancelled"
    assert (after.output_text, after.output[0].status) == ("Hel", "incomplete")
    assert chat.aborts


def test_logprobs_are_those_of_the_text() -> None:
    steps = one_by_one([Reasoning("so "), Reasoning("much"), Content("Hel"), Content("lo")])
    response = of(ScriptedChat(steps, logprobs=True), top=0)
    events = run(told(response))
    pieces = [data["logprobs"] for name, data in events if name == "response.output_text.delta"]
    assert [[found["token"] for found in piece] for piece in pieces] == [["Hel"], ["lo"]]
    whole = check(Response, response.response()).output[1].content[0].logprobs
    assert [(found.token, found.logprob, found.bytes) for found in whole] == [("Hel", -1.0, [2]), ("lo", -1.0, [3])]
    (done,) = [data["logprobs"] for name, data in events if name == "response.output_text.done"]
    assert done == pieces[0] + pieces[1]
