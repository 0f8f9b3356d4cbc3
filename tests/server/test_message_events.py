"""The events of a message are Anthropic's, in Anthropic's order, and add up to the message."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, cast

import pytest
from anthropic.types import Message
from pydantic_core import from_json

from tests.server.scripted_chat import TEXT, TURN, ScriptedChat, one_by_one, run
from tests.server.strict import MESSAGE_EVENTS, check, frames
from xlaserve.server.anthropic.run import MessageRun
from xlaserve.server.chat_run import ChatRun
from xlaserve.server.errors import GenerationFailedError
from xlaserve.server.parsing.events import Content, OutputEvent, Reasoning, ToolCallArguments, ToolCallStart

Events = list[tuple[str, dict[str, Any]]]

TOLD = [
    "message_start",
    "ping",
    *("content_block_start", "content_block_delta", "content_block_delta", "content_block_delta", "content_block_stop"),
    *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
    *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
    *("content_block_start", "content_block_delta", "content_block_stop"),
    "message_delta",
    "message_stop",
]


def of(chat: ScriptedChat, *, filled: bool = False) -> MessageRun:
    return MessageRun(cast(ChatRun, chat), "scripted/model", filled=filled)


async def told(message: MessageRun) -> Events:
    """All events, each checked against its type."""
    async with aclosing(message.events()) as steps:
        events = frames(b"".join([batch async for batch in steps]).decode())
    for name, data in events:
        if name not in ("ping", "error"):
            check(MESSAGE_EVENTS[name], data)
    return events


def put_together(events: Events) -> dict[str, Any]:
    """The message as its events tell it; fails where a block is written before it starts or after it stops."""
    message: dict[str, Any] = {}
    open_now: int | None = None
    arguments = ""
    for name, data in events:
        match name:
            case "message_start":
                message = data["message"]
            case "content_block_start":
                assert (open_now, data["index"]) == (None, len(message["content"]))
                open_now, arguments = data["index"], ""
                message["content"].append(data["content_block"])
            case "content_block_delta":
                assert data["index"] == open_now
                block, delta = message["content"][open_now], data["delta"]
                if delta["type"] == "input_json_delta":
                    arguments += delta["partial_json"]
                    block["input"] = from_json(arguments, allow_partial=True)
                else:
                    field = delta["type"].removesuffix("_delta")
                    block[field] += delta[field]
            case "content_block_stop":
                assert data["index"] == open_now
                open_now = None
            case "message_delta":
                assert open_now is None
                message |= {**data["delta"], "usage": data["usage"]}
            case _:
                assert name in ("ping", "message_stop")
    return message


def whole(message: MessageRun) -> dict[str, Any]:
    """The message object, which is strictly of Anthropic's type."""
    check(Message, message.message())
    return message.message()


def test_events_in_order() -> None:
    message = of(ScriptedChat(one_by_one(TURN), "tool_calls"))
    events = run(told(message))
    assert [name for name, _ in events] == TOLD
    assert [data["index"] for _, data in events if "index" in data] == [0] * 5 + [1] * 4 + [2] * 4 + [3] * 3
    assert [data["delta"]["type"] for name, data in events if name == "content_block_delta"] == [
        *("thinking_delta", "thinking_delta", "signature_delta"),
        *("text_delta", "text_delta"),
        *("input_json_delta", "input_json_delta", "input_json_delta"),
    ]
    assert put_together(events) == whole(message)
    content = message.message()["content"]
    assert [block["type"] for block in content] == ["thinking", "text", "tool_use", "tool_use"]
    assert [(block["id"], block["name"], block["input"]) for block in content[2:]] == [
        ("call_a", "look", {"at": "it"}),
        ("call_b", "wait", {}),
    ]
    assert content[0]["signature"]


@pytest.mark.parametrize("events", [TURN, TEXT, [], [Reasoning("so")]])
def test_however_it_comes(events: list[OutputEvent]) -> None:
    def said(steps: list[list[OutputEvent]]) -> Any:
        message = of(ScriptedChat(steps))
        run(told(message))
        return message.message()["content"]

    assert said([events]) == said(one_by_one(events) or [[]])


@pytest.mark.parametrize(
    ("chat", "filled", "reason", "sequence"),
    [
        (ScriptedChat([TEXT]), False, "end_turn", None),
        (ScriptedChat([TEXT], stop_reason=17), False, "end_turn", None),
        (ScriptedChat([TEXT], stop_reason="###"), False, "stop_sequence", "###"),
        (ScriptedChat([TEXT], "length"), False, "max_tokens", None),
        (ScriptedChat([TEXT], "length"), True, "model_context_window_exceeded", None),
        (ScriptedChat([TEXT]), True, "end_turn", None),
        (ScriptedChat([TEXT], "tool_calls"), False, "tool_use", None),
    ],
)
def test_why_it_stopped(chat: ScriptedChat, filled: bool, reason: str, sequence: str | None) -> None:
    message = of(chat, filled=filled)
    events = run(told(message))
    assert events[-2][1]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}
    assert put_together(events) == whole(message)


def test_usage() -> None:
    message = of(ScriptedChat([TEXT]))
    events = run(told(message))
    usage = {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 3},
    }
    assert message.message()["usage"] == events[-2][1]["usage"] == usage


@pytest.mark.parametrize("arguments", ['{"at": "i', '{"at": [1, {"b": 2}, ', "", "[1]", "nonsense", '{"at"'])
def test_arguments_that_are_cut_off(arguments: str) -> None:
    events: list[OutputEvent] = [ToolCallStart(0, "call_a", "look"), ToolCallArguments(0, arguments)]
    message = of(ScriptedChat([events], "length"))
    told_events = run(told(message))
    assert isinstance(message.message()["content"][0]["input"], dict)
    if arguments.startswith("{") or not arguments:
        assert put_together(told_events) == whole(message)


@pytest.mark.parametrize("chat", [ScriptedChat([[Content("a")]], failure=GenerationFailedError("no luck")), ScriptedChat([TEXT], "abort")])
def test_fails(chat: ScriptedChat) -> None:
    message = of(chat)
    events = run(told(message))
    assert events[-1][0] == "error"
    assert events[-1][1]["error"]["type"] == "api_error"
    assert isinstance(message.error, GenerationFailedError)
    assert chat.aborts


def test_abandoned() -> None:
    chat = ScriptedChat(one_by_one(TEXT))

    async def begin() -> None:
        async with aclosing(of(chat).events()) as steps:
            await anext(steps)

    run(begin())
    assert chat.aborts
