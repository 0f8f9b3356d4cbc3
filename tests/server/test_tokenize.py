"""/tokenize and /detokenize say what completions would read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.live import Live
from tests.server.test_bad_input import assert_error

HI = [{"role": "user", "content": "hi"}]


def test_a_prompt(shared: Live) -> None:
    answer = shared.client.post("/tokenize", json={"model": "scripted/model", "prompt": "hey"}).json()
    assert answer == {"count": 3, "max_model_len": 128, "tokens": [104, 101, 121], "token_strs": None}
    named = shared.client.post("/tokenize", json={"prompt": "hé", "return_token_strs": True, "add_special_tokens": False}).json()
    assert (named["count"], named["token_strs"]) == (3, ["<104>", "<195>", "<169>"])


def test_what_is_only_counted_may_be_long_or_empty(shared: Live) -> None:
    assert shared.client.post("/tokenize", json={"prompt": "a" * 100_000}).json()["count"] == 100_000
    assert shared.client.post("/tokenize", json={"prompt": ""}).json()["tokens"] == []
    assert shared.client.post("/tokenize", json={"messages": [{"role": "user", "content": "a" * 1000}]}).json()["count"] > 1000


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "<user>hi<assistant>"),
        ({"add_generation_prompt": False}, "<user>hi"),
        ({"continue_final_message": True}, "<user>hi"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "<user>hi<assistant>"),
    ],
)
def test_messages(shared: Live, fields: dict[str, Any], text: str) -> None:
    answer = shared.client.post("/tokenize", json={"messages": HI, **fields}).json()
    assert bytes(answer["tokens"]).decode() == text
    assert shared.client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}


def test_messages_count_as_in_a_chat(shared: Live) -> None:
    counted = shared.client.post("/tokenize", json={"messages": HI}).json()["count"]
    assert shared.client.post("/v1/chat/completions", json={"messages": HI, "max_tokens": 1}).json()["usage"]["prompt_tokens"] == counted


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HI}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "return_token_strs": 1}, "return_token_strs"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "king", "content": "a"}]}, "messages.0.role"),
        ("/tokenize", {"messages": HI, "add_generation_prompt": "yes"}, "add_generation_prompt"),
        ("/tokenize", {"messages": HI, "chat_template_kwargs": {"explode": 1}}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1, "a"]}, "tokens.1"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens.1"),
        ("/detokenize", {"tokens": [257]}, "tokens.0"),
        ("/detokenize", {"tokens": [2**80]}, "tokens.0"),
    ],
)
def test_mistakes(shared: Live, path: str, body: dict[str, Any], param: str) -> None:
    error = assert_error(400, shared.client.post(path, json=body))
    assert error["param"] == param
    if "explode" not in str(body):
        assert param in error["message"] or f"`{param.partition('.')[0]}`" in error["message"]


def test_what_harnesses_ask_of_a_tokenizer(shared: Live) -> None:
    assert shared.client.get("/tokenizer_info").json() == {
        "bos_token": None,
        "eos_token": "<end>",
        "pad_token": None,
        "chat_template": "scripted",
        "vocab_size": 257,
        "model_max_length": 128,
    }


def test_detokenize(shared: Live) -> None:
    assert shared.client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    assert shared.client.post("/detokenize", json={"tokens": [104] * 5000}).json() == {"prompt": "h" * 5000}
    assert assert_error(404, shared.client.post("/detokenize", json={"tokens": [1], "model": "other"}))["code"] == "model_not_found"
