"""Everything a client can get wrong is a 4xx in OpenAI's shape that names the field; the server goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.live import Live, live_server
from tests.server.scripted_engine import ScriptedEngine

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
PATHS = {"completion": COMPLETIONS, "chat": CHAT}
PROMPTS: dict[str, dict[str, Any]] = {"completion": {"prompt": "hello"}, "chat": {"messages": [{"role": "user", "content": "hello"}]}}


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


# What both endpoints refuse: the fields sent, and the field that the error names.
BOTH: list[tuple[dict[str, Any], str]] = [
    ({"model": 5}, "model"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stream_options": []}, "stream_options"),
    ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"n": 0}, "n"),
    ({"n": -1}, "n"),
    ({"n": 129}, "n"),
    ({"n": "2"}, "n"),
    ({"n": True}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": 10**30}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": "16"}, "max_tokens"),
    ({"max_tokens": []}, "max_tokens"),
    ({"max_tokens": 10_000}, "max_tokens"),
    ({"max_tokens": 2**63}, "max_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"min_tokens": 2**63}, "min_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": {}}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_p": "1"}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"top_k": "5"}, "top_k"),
    ({"min_p": -0.1}, "min_p"),
    ({"min_p": 1.1}, "min_p"),
    ({"seed": "x"}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 2**64 - 1}, "seed"),
    ({"stop": 5}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ["a", 5]}, "stop"),
    ({"stop": {"a": 1}}, "stop"),
    ({"stop": nested(500)}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop_token_ids": 5}, "stop_token_ids"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids.0"),
    ({"stop_token_ids": [1, True]}, "stop_token_ids.1"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"stop_token_ids": list(range(200))}, "stop_token_ids"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"include_stop_str_in_output": "no"}, "include_stop_str_in_output"),
    ({"skip_special_tokens": "no"}, "skip_special_tokens"),
    ({"add_special_tokens": 0}, "add_special_tokens"),
    ({"logprobs": "yes"}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logit_bias": {"five": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"5": "1"}}, "logit_bias.5"),
    ({"logit_bias": [5]}, "logit_bias"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": ["a"]}, "allowed_token_ids.0"),
    ({"bad_words": [""]}, "bad_words"),
    ({"bad_words": "word"}, "bad_words"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "json"}}, "response_format.type"),
    ({"response_format": "json_object"}, "response_format"),
    ({"response_format": nested(900)}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": []}}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": nested(900)}}}},
        "response_format.json_schema.schema",
    ),
    ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"response_format": {"type": "json_object"}, "use_beam_search": True}, "response_format"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a" * 10_000}}, "structured_outputs.regex"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": ["a"] * 3000}}, "structured_outputs.choice"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
    ({"structured_outputs": {"grammar": ""}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"structural_tag": []}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": []}, "structured_outputs"),
    ({"guided_json": {"type": "object"}, "guided_regex": "a"}, "guided_regex"),
    ({"guided_choice": "a"}, "guided_choice"),
    ({"suffix": "end"}, "suffix"),
    ({"best_of": 0}, "best_of"),
    ({"best_of": "2"}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"best_of": 2, "n": 3}, "best_of"),
    ({"best_of": 2, "use_beam_search": True}, "best_of"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": 129}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": "5"}, "truncate_prompt_tokens"),
    ({"truncation_side": "middle"}, "truncation_side"),
    ({"truncation_side": 1}, "truncation_side"),
    ({"return_token_ids": 1}, "return_token_ids"),
    ({"return_tokens_as_token_ids": "yes"}, "return_tokens_as_token_ids"),
    ({"spaces_between_special_tokens": "no"}, "spaces_between_special_tokens"),
    ({"stream_interval": 0}, "stream_interval"),
    ({"stream_interval": 1025}, "stream_interval"),
    ({"stream_interval": 1.5}, "stream_interval"),
    ({"request_id": ""}, "request_id"),
    ({"request_id": 5}, "request_id"),
    ({"request_id": "a b"}, "request_id"),
    ({"request_id": "a\n"}, "request_id"),
    ({"request_id": "a" * 129}, "request_id"),
    ({"logprob_token_ids": [5]}, "logprob_token_ids"),
    ({"repetition_detection": {"max_pattern_size": 4}}, "repetition_detection"),
    ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
    ({"vllm_xargs": {"a": 1}}, "vllm_xargs"),
    ({"return_token_offsets": True}, "return_token_offsets"),
    ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"use_beam_search": 1}, "use_beam_search"),
    ({"use_beam_search": True, "n": 17}, "n"),
    ({"use_beam_search": True, "n": 0}, "n"),
    ({"use_beam_search": True, "stream": True}, "stream"),
    ({"use_beam_search": True, "stop": ["x"]}, "stop"),
    ({"use_beam_search": True, "repetition_penalty": 1.1}, "repetition_penalty"),
    ({"use_beam_search": True, "length_penalty": 11}, "length_penalty"),
    ({"use_beam_search": True, "early_stopping": "always"}, "early_stopping"),
    ({"length_penalty": 2}, "length_penalty"),
    ({"length_penalty": "1"}, "length_penalty"),
    ({"early_stopping": True}, "early_stopping"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": "1"}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
]
COMPLETION: list[tuple[dict[str, Any], str]] = [
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt.1"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": ["a", 5]}, "prompt"),
    ({"prompt": ["a", [5]]}, "prompt"),
    ({"prompt": [[1], ["a"]]}, "prompt.1"),
    ({"prompt": [[1, True]]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [257]}, "prompt"),
    ({"prompt": [2**63]}, "prompt"),
    ({"prompt": nested(900)}, "prompt"),
    ({"prompt": ["a"] * 1025}, "prompt"),
    ({"prompt": "a" * 128}, "prompt"),
    ({"prompt": "a" * 100_000}, "prompt"),
    ({"prompt": [5] * 128}, "prompt"),
    ({"prompt": ["a", "a" * 128]}, "prompt.1"),
    ({"prompt": "a" * 100, "max_tokens": 29}, "max_tokens"),
    ({"prompt": "a" * 200, "truncate_prompt_tokens": 128}, "prompt"),
    ({"max_tokens": 0, "echo": True, "min_tokens": 1}, "min_tokens"),
    ({"max_tokens": 0, "echo": True, "use_beam_search": True}, "max_tokens"),
    ({"echo": "yes"}, "echo"),
]
CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": {"role": "user"}}, "messages"),
    ({"messages": ["hi"]}, "messages.0"),
    ({"messages": [{}]}, "messages.0.role"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [5]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0.content.0.type"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": nested(900)}]}, "messages.1.content.0"),
    ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools.0.type"),
    ({"tools": [{"type": "function"}]}, "tools.0.function"),
    ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools.0.function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools.1.function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "description": 1}}]}, "tools.0.function.description"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools.0.function.parameters"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, "tools.0.function.parameters.type"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": 1}}}]},
        "tools.0.function.parameters.properties",
    ),
    ({"tools": [{"type": "function", "function": {"name": "f"}}] * 513}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": {"type": "tool"}}, "tool_choice"),
    (
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
    ),
    ({"reasoning_effort": "enormous"}, "reasoning_effort"),
    ({"tool_choice": 5}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"thinking_token_budget": -2}, "thinking_token_budget"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}]}, "messages.0.tool_calls.0"),
    ({"messages": [{"role": "user", "content": "hi", "tool_calls": [{}]}]}, "messages.0.tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}]}, "messages.0.tool_calls.0.function.name"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 1}}]}]},
        "messages.0.tool_calls.0.function.arguments",
    ),
    ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages.0.function_call"),
    ({"messages": [{"role": "user", "content": "a" * 128}]}, "messages"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 1000}, "max_completion_tokens"),
    ({"max_completion_tokens": "5"}, "max_completion_tokens"),
    ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
    ({"add_generation_prompt": "yes"}, "add_generation_prompt"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"chat_template_kwargs": {"explode": 1}}, "messages"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"echo": True}, "echo"),
    ({"logprobs": 3}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
]
ROWS = (
    [(kind, fields, param) for kind in PATHS for fields, param in BOTH]
    + [("completion", fields, param) for fields, param in COMPLETION]
    + [("chat", fields, param) for fields, param in CHATS]
)
# Bodies that are not JSON objects at all (RFC 8259), as bytes.
BODIES: list[bytes] = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"5",
    b"NaN",
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "temperature": Infinity}',
    b'{"prompt": "a", "temperature": 1e999}',
    b'{"prompt": "\xff"}',
    b'{"prompt": "\xed\xa0\x80"}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "a",}',
    b"{'prompt': 'a'}",
    b"\xef\xbb\xbf{}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"prompt": "a"} {"prompt": "b"}',
    b"\x00",
    bytes(range(256)),
]


def assert_error(status: int, response: Any) -> dict[str, Any]:
    """The response is an error in OpenAI's shape that betrays nothing of the server's insides."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["message"], str)
    assert 10 < len(error["message"]) <= 1100
    assert "Traceback" not in error["message"]
    assert ".py" not in error["message"]
    assert "pydantic" not in error["message"]
    return error


@pytest.mark.parametrize(("kind", "fields", "param"), ROWS)
def test_names_the_field(shared: Live, kind: str, fields: dict[str, Any], param: str) -> None:
    body = {**PROMPTS[kind], **fields}
    error = assert_error(400, shared.client.post(PATHS[kind], json=body))
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    if "explode" not in str(fields):
        assert param in error["message"] or "the prompt has" in error["message"] or "maximum context length" in error["message"]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:30]))
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_not_a_json_object(shared: Live, path: str, body: bytes) -> None:
    error = assert_error(400, shared.client.post(path, content=body, headers=JSON))
    assert "JSON" in error["message"]


@pytest.mark.parametrize("kind", PATHS)
def test_missing_prompt(shared: Live, kind: str) -> None:
    error = assert_error(400, shared.client.post(PATHS[kind], json={"model": "scripted/model"}))
    assert error["param"] == ("prompt" if kind == "completion" else "messages")
    assert "required" in error["message"]


@pytest.mark.parametrize("name", ["nothing", "scripted", "/etc/passwd", "a\x00b", "m" * 5000])
@pytest.mark.parametrize("kind", PATHS)
def test_unknown_model(shared: Live, kind: str, name: str) -> None:
    error = assert_error(404, shared.client.post(PATHS[kind], json={**PROMPTS[kind], "model": name}))
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "scripted/model" in error["message"]


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "application/xml"]
)
def test_wrong_content_type(shared: Live, content_type: str) -> None:
    body = json.dumps(PROMPTS["completion"]).encode()
    error = assert_error(415, shared.client.post(COMPLETIONS, content=body, headers={"Content-Type": content_type}))
    assert "application/json" in error["message"]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"])
def test_json_content_types(shared: Live, content_type: str) -> None:
    body = json.dumps(PROMPTS["completion"]).encode()
    assert shared.client.post(COMPLETIONS, content=body, headers={"Content-Type": content_type}).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_body_too_large(chunked: bool) -> None:
    with live_server(ScriptedEngine(), max_body_size=1000) as live:
        body = json.dumps({"prompt": "a" * 2000}).encode()
        error = assert_error(413, live.client.post(COMPLETIONS, content=iter([body]) if chunked else body, headers=JSON))
        assert "1000 bytes" in error["message"]
        assert live.client.post(COMPLETIONS, json={"prompt": "a"}).status_code == 200


@pytest.mark.parametrize("path", ["/v1", "/v1/nothing", "/v1/completions/", "/%ff%00", "/v1/models/", "/docs/../etc"])
def test_unknown_path(shared: Live, path: str) -> None:
    assert_error(404, shared.client.get(path))


@pytest.mark.parametrize(("method", "path"), [("GET", COMPLETIONS), ("DELETE", CHAT), ("POST", "/v1/models"), ("PUT", "/health")])
def test_wrong_method(shared: Live, method: str, path: str) -> None:
    response = shared.client.request(method, path)
    error = assert_error(405, response)
    assert error["code"] == "method_not_allowed"
    assert response.headers["allow"] in error["message"]


@pytest.mark.parametrize("kind", PATHS)
def test_too_long_names_the_numbers(shared: Live, kind: str) -> None:
    long = {"prompt": "a" * 100} if kind == "completion" else {"messages": [{"role": "user", "content": "a" * 83}]}
    error = assert_error(400, shared.client.post(PATHS[kind], json={**long, "max_tokens": 50}))
    assert error["code"] == "context_length_exceeded"
    for number in ("100", "128", "50", "150"):
        assert number in error["message"]


NEUTRAL: dict[str, Any] = {
    "logprobs": False,
    "top_logprobs": 0,
    "prompt_logprobs": False,
    "logit_bias": {},
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "tools": None,
    "tool_choice": "auto",
    "response_format": {"type": "text"},
    "best_of": 1,
    "suffix": None,
    "use_beam_search": False,
    "length_penalty": 1.0,
    "early_stopping": False,
    "user": "someone",
    "store": True,
    "metadata": {"a": "b"},
    "stream_options": None,
    "an_unknown_field": {"deep": [1]},
    "max_tokens": 4.0,
    "temperature": 0,
    "top_k": -1,
    "stop": None,
    "stream_interval": 1,
    "truncate_prompt_tokens": None,
    "return_token_ids": False,
    "vllm_xargs": {},
    "spaces_between_special_tokens": True,
}


@pytest.mark.parametrize("kind", PATHS)
def test_values_that_ask_for_nothing_are_accepted(shared: Live, kind: str) -> None:
    response = shared.client.post(PATHS[kind], json={**PROMPTS[kind], **NEUTRAL})
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("text", ["a\x00b", "\u202e\ufeff", "😀", "\ud7ff\ue000", "<|endoftext|>"])
def test_odd_text_is_served(shared: Live, text: str) -> None:
    response = shared.client.post(COMPLETIONS, json={"prompt": text, "echo": True, "max_tokens": 1})
    assert response.json()["choices"][0]["text"] == text + "a"


def test_serves_after_all_that(shared: Live) -> None:
    assert shared.client.get("/health").status_code == 200
    assert shared.client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 3}).json()["choices"][0]["text"] == "abc"
