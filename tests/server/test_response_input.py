"""What clients put into /v1/responses: items become messages, and mistakes are named where they are."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from tests.server.live import Live
from tests.server.test_bad_input import assert_error, nested
from xlaserve.server.responses.conversation import chat_messages
from xlaserve.server.responses.conversion import to_chat
from xlaserve.server.responses.items import input_items
from xlaserve.server.responses.protocol import CreateResponse


def nothing(item_id: str) -> None:
    """There is no item to be referred to."""


USER = {"role": "user", "content": "What is here?"}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "I look."}]}
SAID = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [{"type": "output_text", "text": "So:"}]}
CALL = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "A cat."}
TOOL = {"type": "function", "name": "look", "description": "Looks.", "parameters": {"type": "object"}, "strict": True}
FUNCTION = {"type": "function", "function": {name: value for name, value in TOOL.items() if name != "type"}}
CALLED = [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("instructions", "given", "expected"),
    [
        (None, "hi", [{"role": "user", "content": "hi"}]),
        ("Be brief.", "hi", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]),
        (
            "Be brief.",
            [{"role": "developer", "content": "Be kind."}, USER],
            [{"role": "system", "content": "Be brief.\n\nBe kind."}, {"role": "user", "content": "What is here?"}],
        ),
        (
            None,
            [USER, REASONING, SAID, CALL, OUTPUT],
            [
                {"role": "user", "content": "What is here?"},
                {"role": "assistant", "content": "So:", "reasoning": "I look.", "tool_calls": CALLED},
                {"role": "tool", "tool_call_id": "call_1", "content": "A cat."},
            ],
        ),
        (
            None,
            [CALL, CALL, OUTPUT, REASONING, SAID],
            [
                {"role": "assistant", "content": None, "tool_calls": CALLED * 2},
                {"role": "tool", "tool_call_id": "call_1", "content": "A cat."},
                {"role": "assistant", "content": "So:", "reasoning": "I look."},
            ],
        ),
        (None, [SAID, SAID], [{"role": "assistant", "content": "So:"}] * 2),
        (
            None,
            [{**OUTPUT, "output": [{"type": "input_text", "text": "A"}, {"type": "input_text", "text": "cat."}]}],
            [{"role": "tool", "tool_call_id": "call_1", "content": "A\ncat."}],
        ),
        (
            None,
            [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}],
            [{"role": "assistant", "content": "No."}],
        ),
    ],
)
def test_items_become_messages(instructions: str | None, given: Any, expected: list[dict[str, Any]]) -> None:
    assert chat_messages(instructions, input_items(given, nothing)) == expected


def test_items_are_kept_as_openai_lists_them() -> None:
    items = input_items([USER, REASONING, SAID, CALL, OUTPUT], nothing)
    for item in items:
        TypeAdapter[Any](ResponseItem).validate_python(item, strict=True)
    assert [item["id"].partition("_")[0] for item in items] == ["msg", "rs", "msg", "fc", "fco"]
    assert input_items(items, nothing) == items


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_output_tokens": 5, "temperature": 0.5, "top_p": 0.9}, {"max_completion_tokens": 5, "temperature": 0.5, "top_p": 0.9}),
        ({"top_k": 3, "seed": 1, "nobody_knows": 5}, {"top_k": 3, "seed": 1}),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
        ({"include": ["reasoning.encrypted_content"]}, {}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "cat", "schema": {"type": "object"}, "strict": True}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "cat", "schema": {"type": "object"}, "strict": True}}},
        ),
        ({"tools": [TOOL]}, {"tools": [FUNCTION]}),
        ({"tools": [TOOL], "tool_choice": "required"}, {"tools": [FUNCTION], "tool_choice": "required"}),
        ({"tools": [], "tool_choice": "auto"}, {}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "look"}, "parallel_tool_calls": False},
            {
                "tools": [FUNCTION],
                "tool_choice": {"type": "function", "function": {"name": "look"}},
                "parallel_tool_calls": False,
            },
        ),
        (
            {
                "tools": [TOOL, {**TOOL, "name": "wait"}],
                "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "look"}]},
            },
            {"tools": [FUNCTION], "tool_choice": "required"},
        ),
    ],
)
def test_fields_become_those_of_chat(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    chat = to_chat(CreateResponse.model_validate({"input": "hi", **fields}), input_items("hi", nothing))
    given = chat.model_dump(exclude_unset=True)
    assert given.pop("messages") == [{"role": "user", "content": "hi"}]
    assert given == expected


# What is sent, and the field that the error names.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": ["hi"]}, "input"),
    ({"input": [{}]}, "input.0.type"),
    ({"input": [{"type": "web_search_call"}]}, "input.0.type"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.id"),
    ({"input": [{"id": "msg_1"}]}, "input.0.id"),
    ({"input": [{"type": "item_reference"}]}, "input.0.id"),
    ({"input": [{"type": ["message"]}]}, "input.0.type"),
    ({"input": [{"role": "king", "content": "x"}]}, "input.0.role"),
    ({"input": [{"role": "user"}]}, "input.0.content"),
    ({"input": [{"role": "user", "content": [5]}]}, "input.0.content.0"),
    ({"input": [{"role": "user", "content": nested(900)}]}, "input.0.content.0"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0.type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0.text"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input.0.call_id"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]}, "input.0.arguments"),
    ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input.0.output"),
    ({"input": [USER, {"type": "function_call_output", "output": "x"}]}, "input.1.call_id"),
    ({"input": [{"type": "reasoning", "content": [{"type": "text", "text": "x"}]}]}, "input.0.content.0.type"),
    ({"input": "a" * 128}, "input"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 1000}, "max_output_tokens"),
    ({"max_output_tokens": "5"}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"top_k": "5"}, "top_k"),
    ({"n": 2}, "n"),
    ({"stream": "yes"}, "stream"),
    ({"background": True, "store": False}, "background"),
    ({"previous_response_id": "resp_nothing"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "x"}}, "prompt"),
    ({"truncation": "some"}, "truncation"),
    ({"metadata": {"a": 5}}, "metadata.a"),
    ({"metadata": {"a": "x" * 513}}, "metadata"),
    ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    ({"include": ["everything"]}, "include"),
    ({"instructions": 5}, "instructions"),
    ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
    ({"text": {"verbosity": "loud"}}, "text.verbosity"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"tools": {}}, "tools"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"tools": [TOOL, {"type": "custom", "name": "x"}]}, "tools.1.type"),
    ({"tools": [{"type": "function"}]}, "tools.0.name"),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [{**TOOL, "parameters": {"a": nested(500)}}]}, "tools"),
    ({"text": {"format": {"type": "json_object", "a": nested(500)}}}, "text.format"),
    ({"tools": [{**TOOL, "name": "look there"}]}, "tools.0.name"),
    ({"tools": [TOOL, TOOL]}, "tools.1.name"),
    ({"tools": [{**TOOL, "description": 5}]}, "tools.0.description"),
    ({"tools": [{**TOOL, "parameters": {"type": "array"}}]}, "tools.0.parameters.type"),
    ({"reasoning": {"effort": "hard"}}, "reasoning.effort"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": 5}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "hear"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice.tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "any", "tools": [TOOL]}}, "tool_choice.mode"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [5]}}, "tool_choice.tools.0.name"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_names_the_field(shared: Live, fields: dict[str, Any], param: str) -> None:
    error = assert_error(400, shared.client.post("/v1/responses", json={"input": "hi", **fields}))
    assert error["param"] == param
    assert param in error["message"] or "the prompt has" in error["message"]


def test_serves_after_all_that(shared: Live) -> None:
    answer = shared.client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 3}).json()
    assert answer["output"][0]["content"][0]["text"] == "abc"
