"""Streams carry what whole answers carry, in OpenAI's chunk shapes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.live import Live
from tests.server.sse import endings, events, texts

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]

CASES: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"prompt": "hello"}),
    (COMPLETIONS, {"prompt": [104, 105]}),
    (COMPLETIONS, {"prompt": "hello", "n": 3, "max_tokens": 5}),
    (COMPLETIONS, {"prompt": ["a", "bb", "ccc"], "n": 2, "max_tokens": 4}),
    (COMPLETIONS, {"prompt": [[1, 2], [3]], "max_tokens": 2}),
    (COMPLETIONS, {"prompt": ["a", "bb"], "n": 2, "max_tokens": 4, "echo": True}),
    (COMPLETIONS, {"prompt": [104, 105], "max_tokens": 1, "echo": True}),
    (CHAT, {"messages": MESSAGES, "max_tokens": 6}),
    (CHAT, {"messages": MESSAGES, "max_completion_tokens": 6, "n": 3}),
    (CHAT, {"messages": MESSAGES}),
]


@pytest.mark.parametrize(("path", "body"), CASES)
def test_stream_equals_whole(shared: Live, path: str, body: dict[str, Any]) -> None:
    whole = shared.client.post(path, json=body).json()
    chunks = events(shared.client.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}}))
    content = {choice["index"]: choice["message"]["content"] if path == CHAT else choice["text"] for choice in whole["choices"]}
    assert texts(chunks) == content
    assert endings(chunks) == {choice["index"]: (choice["finish_reason"], choice["stop_reason"]) for choice in whole["choices"]}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}


def test_choices_are_numbered_by_prompt_then_completion(shared: Live) -> None:
    body = {"prompt": ["x", "yy"], "n": 2, "max_tokens": 3, "echo": True}
    answer = shared.client.post(COMPLETIONS, json=body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == ["xabc", "xbcd", "yyabc", "yybcd"]
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 12


def test_chat_chunks_open_with_the_role(shared: Live) -> None:
    chunks = events(shared.client.post(CHAT, json={"messages": MESSAGES, "n": 2, "max_tokens": 2, "stream": True}))
    seen: set[int] = set()
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert "usage" not in chunk
        for choice in chunk["choices"]:
            assert ("role" in choice["delta"]) == (choice["index"] not in seen)
            seen.add(choice["index"])
    assert seen == {0, 1}


def test_continuous_usage(shared: Live) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": True, "stream_options": options}
    chunks = events(shared.client.post(CHAT, json=body))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 2, 3, 3]
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {len("<user>hi<assistant>")}


@pytest.mark.parametrize("options", [{}, {"include_usage": False}, {"continuous_usage_stats": True}])
def test_no_usage_unless_asked_for(shared: Live, options: dict[str, bool]) -> None:
    chunks = events(shared.client.post(COMPLETIONS, json={"prompt": "a", "stream": True, "stream_options": options}))
    assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize(("path", "prefix", "kind"), [(COMPLETIONS, "cmpl-", "text_completion"), (CHAT, "chatcmpl-", "chat.completion")])
def test_head_of_an_answer(shared: Live, path: str, prefix: str, kind: str) -> None:
    prompt: dict[str, Any] = {"prompt": "a"} if path == COMPLETIONS else {"messages": MESSAGES}
    first, second = (shared.client.post(path, json={**prompt, "model": "scripted/model"}).json() for _ in range(2))
    assert first["id"].startswith(prefix)
    assert first["id"] != second["id"]
    assert first["object"] == kind
    assert first["model"] == "scripted/model"
    assert first["system_fingerprint"] == second["system_fingerprint"]
    assert isinstance(first["created"], int)


def test_text_parts_are_joined(shared: Live) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    split = shared.client.post(CHAT, json={"messages": [{"role": "user", "content": parts}]}).json()
    joined = shared.client.post(CHAT, json={"messages": [{"role": "user", "content": "one\ntwo"}]}).json()
    assert split["usage"] == joined["usage"]


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, "<user>hi<assistant>"),
        ({"add_generation_prompt": False}, "<user>hi"),
        ({"continue_final_message": True}, "<user>hi"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "<user>hi"),
        ({"messages": [{"role": "developer", "content": "x"}, {"role": "user", "content": "hi"}]}, "<system>x<user>hi<assistant>"),
        ({"messages": [{"role": "assistant", "content": None}, {"role": "user", "content": "hi"}]}, "<assistant><user>hi<assistant>"),
    ],
)
def test_rendered_prompt(server: Live, engine: Any, fields: dict[str, Any], prompt: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, **fields}
    assert server.client.post(CHAT, json=body).status_code == 200
    assert bytes(engine.submitted[0].prompt_token_ids).decode() == prompt
