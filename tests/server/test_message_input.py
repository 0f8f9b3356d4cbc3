"""What clients put into /v1/messages: blocks become chat messages, and mistakes are named where they are."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.live import Live
from tests.server.test_bad_input import nested
from xlaserve.server.anthropic.conversation import chat_messages
from xlaserve.server.anthropic.conversion import to_chat
from xlaserve.server.anthropic.protocol import CreateMessage

USER = {"role": "user", "content": "What is here?"}
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
FUNCTION = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
TURN = {
    "role": "assistant",
    "content": [
        {"type": "thinking", "thinking": "I look.", "signature": "x"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "So:"},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "it"}},
    ],
}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "cat."}]}
CALLED = [{"id": "toolu_1", "type": "function", "function": {"name": "look", "arguments": '{"at":"it"}'}}]


CACHED = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "And kind."}]


def text(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize(
    ("system", "messages", "expected"),
    [
        (None, [USER], [USER]),
        ("Be brief.", [USER], [{"role": "system", "content": "Be brief."}, USER]),
        (CACHED, [USER], [{"role": "system", "content": "Be brief.\nAnd kind."}, USER]),
        (None, [{"role": "user", "content": text("a", "b")}, USER], [{"role": "user", "content": "a\nb\nWhat is here?"}]),
        (
            None,
            [USER, TURN, {"role": "user", "content": [RESULT, *text("Well?")]}],
            [
                USER,
                {"role": "assistant", "content": "So:", "reasoning": "I look.", "tool_calls": CALLED},
                {"role": "tool", "tool_call_id": "toolu_1", "content": "A\ncat."},
                {"role": "user", "content": "Well?"},
            ],
        ),
        (
            None,
            [{"role": "user", "content": [{**RESULT, "content": "x"}, {"type": "tool_result", "tool_use_id": "toolu_2"}]}],
            [{"role": "tool", "tool_call_id": "toolu_1", "content": "x"}, {"role": "tool", "tool_call_id": "toolu_2", "content": ""}],
        ),
        (
            None,
            [{"role": "assistant", "content": "a"}, TURN],
            [{"role": "assistant", "content": "a\nSo:", "reasoning": "I look.", "tool_calls": CALLED}],
        ),
    ],
)
def test_blocks_become_messages(system: Any, messages: Any, expected: list[dict[str, Any]]) -> None:
    assert chat_messages(system, messages) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop_sequences": ["x"]},
            {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop": ["x"]},
        ),
        ({"stop_sequences": [], "metadata": {"user_id": "me"}, "service_tier": "auto", "nobody_knows": 5}, {}),
        ({"tools": [TOOL]}, {"tools": [FUNCTION]}),
        (
            {"tools": [{**TOOL, "type": "custom", "cache_control": {}}], "tool_choice": {"type": "auto"}},
            {"tools": [FUNCTION], "tool_choice": "auto"},
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, {"tools": [FUNCTION], "tool_choice": "required"}),
        ({"tools": [TOOL], "tool_choice": {"type": "none"}}, {"tools": [FUNCTION], "tool_choice": "none"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True}},
            {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "look"}}, "parallel_tool_calls": False},
        ),
        ({"tool_choice": {"type": "auto"}}, {}),
        ({"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 10}}, {"reasoning_effort": "medium"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 10}, "output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, {"include_reasoning": False}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "output", "schema": {"type": "object"}, "strict": True}}},
        ),
        ({"messages": [USER, {"role": "assistant", "content": "It is"}]}, {"continue_final_message": True}),
    ],
)
def test_fields_become_those_of_chat(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    chat = to_chat(CreateMessage.model_validate({"messages": [USER], "max_tokens": 16, **fields}))
    given = chat.model_dump(exclude_unset=True)
    assert given.pop("messages")[0] == USER
    assert given.pop("max_completion_tokens") == 16
    assert given == expected


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": list(blocks)}]}


# What is sent, and the field that the error names.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": ["hi"]}, "messages.0"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    (user(), "messages.0.content"),
    (user(5), "messages.0.content.0"),
    (user(nested(900)), "messages.0.content.0"),
    (user({"type": "text"}), "messages.0.content.0.text"),
    (user(*text("x"), {"type": "image", "source": {}}), "messages.0.content.1.type"),
    (user({"type": "document", "source": {}}), "messages.0.content.0.type"),
    (user({"type": "tool_use", "id": "x", "name": "f", "input": {}}), "messages.0.content.0.type"),
    (user({"type": "tool_result"}), "messages.0.content.0.tool_use_id"),
    (user({**RESULT, "content": [{"type": "image"}]}), "messages.0.content.0.content.0.type"),
    (user({**RESULT, "content": 5}), "messages.0.content.0.content"),
    (assistant({"type": "tool_use", "id": "x", "name": "f", "input": "{}"}), "messages.1.content.0.input"),
    (assistant({"type": "tool_use", "id": "x", "name": "f", "input": {"a": nested(900)}}), "messages.1.content.0.input"),
    (assistant({"type": "thinking"}), "messages.1.content.0.thinking"),
    ({"messages": [USER, TURN]}, "messages"),
    ({"system": 5}, "system"),
    ({"system": [{"type": "image"}]}, "system.0.type"),
    ({"stop_sequences": "x"}, "stop_sequences"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"temperature": 3}, "temperature"),
    ({"top_k": "5"}, "top_k"),
    ({"stream": "yes"}, "stream"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
    ({"tools": [{"input_schema": {}}]}, "tools.0.name"),
    ({"tools": [TOOL, {"name": "x"}]}, "tools.1.input_schema"),
    ({"tools": [{**TOOL, "name": "look there"}]}, "tools.0.name"),
    ({"tools": [{**TOOL, "input_schema": {"type": "array"}}]}, "tools.0.input_schema.type"),
    ({"output_config": {"effort": "hard"}}, "output_config.effort"),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "all"}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "hear"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}}, "tool_choice.disable_parallel_tool_use"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"thinking": {"type": "hard"}}, "thinking.type"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 16}}, "thinking.budget_tokens"),
    ({"output_config": {"format": {"type": "text"}}}, "output_config.format"),
    ({"container": "x"}, "container"),
    ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
]


def assert_refused(response: Any, status: int, kind: str) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["type", "error"]
    assert body["type"] == "error"
    assert list(body["error"]) == ["type", "message"]
    assert body["error"]["type"] == kind
    return body["error"]["message"]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_names_the_field(shared: Live, fields: dict[str, Any], param: str) -> None:
    response = shared.client.post("/v1/messages", json={"messages": [USER], "max_tokens": 16, **fields})
    message = assert_refused(response, 400, "invalid_request_error")
    assert message.startswith((f"`{param}`", f"{param} "))


def test_the_rest_of_the_errors(shared: Live) -> None:
    post = shared.client.post
    assert_refused(post("/v1/messages", content=b"{"), 415, "invalid_request_error")
    assert_refused(post("/v1/messages", content=b"{", headers={"Content-Type": "application/json"}), 400, "invalid_request_error")
    assert_refused(post("/v1/messages", json={"messages": [USER]}), 400, "invalid_request_error")
    assert_refused(post("/v1/messages", json={"messages": [USER], "max_tokens": 5, "model": "x"}), 404, "not_found_error")
    assert_refused(shared.client.get("/v1/messages"), 405, "invalid_request_error")
    assert_refused(shared.client.get("/v1/messages/batches"), 404, "not_found_error")
    too_long = post("/v1/messages", json={"messages": [{"role": "user", "content": "x" * 200}], "max_tokens": 5})
    assert "maximum context length" in assert_refused(too_long, 400, "invalid_request_error")
