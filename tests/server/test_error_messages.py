"""The mistakes that clients make most, as the `openai` package tells them: its exception, the field, the code, and what must be said.

The comments are what vLLM answers with the same status. It gives the status for a code; here codes are OpenAI's words, which programs
match. A third line tells where the answer differs on purpose.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.server.live import TIMEOUT, Live

BAD = openai.BadRequestError
GONE = openai.NotFoundError
HI = [{"role": "user", "content": "hi"}]
A = {"prompt": "a"}
CHAT = {"messages": HI}

ROWS: list[tuple[dict[str, Any], type[openai.APIStatusError], str, str, tuple[str, ...]]] = [
    # "The model `X` does not exist."
    ({**A, "model": "gpt-9"}, GONE, "model", "model_not_found", ("'gpt-9'", "does not exist", "scripted/model")),
    # "This model's maximum context length is 128 tokens. However, ..."; LangChain, LiteLLM and others look for these words and the code
    ({"prompt": "a" * 128}, BAD, "prompt", "context_length_exceeded", ("maximum context length is 128 tokens", "the prompt has 128")),
    ({**A, "max_tokens": 500}, BAD, "max_tokens", "context_length_exceeded", ("maximum context length is 128 tokens", "at most 127")),
    (
        {"messages": [{"role": "user", "content": "a" * 200}]},
        BAD,
        "messages",
        "context_length_exceeded",
        ("maximum context length is 128",),
    ),
    # "Stream options can only be defined when `stream=True`."
    ({**A, "stream_options": {"include_usage": True}}, BAD, "stream_options", "invalid_value", ("unless `stream` is true",)),
    # "`prompt_logprobs` are not available when `stream=True`."
    ({**A, "stream": True, "prompt_logprobs": 1}, BAD, "prompt_logprobs", "invalid_value", ("where `stream` is true",)),
    # "`prompt_logprobs` must be a positive value or -1."
    # -1, all of the vocabulary, is more than graphs with static shapes give
    ({**A, "prompt_logprobs": -1}, BAD, "prompt_logprobs", "invalid_value", ("between 0 and 20", "-1")),
    # "Requested sample logprobs of 21, which is greater than max allowed: 20"
    ({**A, "logprobs": 21}, BAD, "logprobs", "invalid_value", ("between 0 and 20", "21")),
    ({**CHAT, "logprobs": True, "top_logprobs": 21}, BAD, "top_logprobs", "invalid_value", ("between 0 and 20", "21")),
    # "when using `top_logprobs`, `logprobs` must be set to true."
    ({**CHAT, "top_logprobs": 3}, BAD, "top_logprobs", "invalid_value", ("`top_logprobs` needs `logprobs` to be true",)),
    # "temperature must be in [0, 2], got 3.0."
    ({**A, "temperature": 3}, BAD, "temperature", "invalid_value", ("temperature must be in [0, 2], got 3",)),
    # "top_p must be in (0, 1], got 0.0."
    ({**A, "top_p": 0}, BAD, "top_p", "invalid_value", ("top_p must be in (0, 1], got 0",)),
    # "n must be at least 1, got 0."
    ({**A, "n": 0}, BAD, "n", "invalid_value", ("n must be between 1 and 128, got 0",)),
    # "max_tokens must be at least 1, got 0."
    ({**A, "max_tokens": 0}, BAD, "max_tokens", "invalid_value", ("max_tokens must be at least 1, got 0",)),
    # "Input should be a valid integer, unable to parse string as an integer", or the string taken for a number
    ({**A, "max_tokens": "many"}, BAD, "max_tokens", "invalid_value", ("`max_tokens` must be an integer, got 'many'",)),
    # "stop cannot contain an empty string."
    ({**A, "stop": [""]}, BAD, "stop", "invalid_value", ("non-empty strings",)),
    # "logit_bias contains key(s) that cannot be converted to integer token IDs"
    ({**A, "logit_bias": {"five": 1}}, BAD, "logit_bias", "invalid_value", ("integer token ids for keys", "'five'")),
    # "allowed_token_ids is not None and empty!"
    ({**A, "allowed_token_ids": []}, BAD, "allowed_token_ids", "invalid_value", ("at least one id",)),
    # "suffix is not currently supported"
    ({**A, "suffix": "end"}, BAD, "suffix", "invalid_value", ("`suffix` is not supported by this server",)),
    # "Either prompt or prompt_embeds must be provided and non-empty."
    ({"prompt": ""}, BAD, "prompt", "invalid_value", ("`prompt` must not be empty",)),
    # "Token id 999 is out of vocabulary"
    ({"prompt": [999]}, BAD, "prompt", "invalid_value", ("between 0 and 256", "999")),
    # "truncate_prompt_tokens value is greater than max_model_len. Please, select a smaller truncation size."
    ({**A, "truncate_prompt_tokens": 999}, BAD, "truncate_prompt_tokens", "invalid_value", ("maximum context length", "999")),
    # "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
    (
        {**CHAT, "continue_final_message": True, "add_generation_prompt": True},
        BAD,
        "continue_final_message",
        "invalid_value",
        ("`continue_final_message` and `add_generation_prompt` exclude each other",),
    ),
    # "Streaming is not currently supported with beam search"
    ({**A, "use_beam_search": True, "stream": True}, BAD, "stream", "invalid_value", ("not supported together with `use_beam_search`",)),
]


@pytest.fixture(scope="module")
def client(shared: Live) -> Generator[OpenAI]:
    with OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT) as client:
        yield client


@pytest.mark.parametrize(("fields", "kind", "param", "code", "words"), ROWS)
def test_mistakes(
    client: OpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError], param: str, code: str, words: tuple[str, ...]
) -> None:
    # As a body: the client's own methods would not send some of these.
    path = "/completions" if "prompt" in fields else "/chat/completions"
    with pytest.raises(kind) as refused:
        client.post(path, cast_to=object, body={"model": "scripted/model", **fields})
    error = refused.value
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    for word in words:
        assert word in error.message


def test_a_stream_is_refused_before_it_begins(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="scripted/model", prompt="a", logprobs=99, stream=True)
    assert refused.value.param == "logprobs"


@pytest.mark.parametrize("path", ["/health", "/ping", "/ready", "/version", "/metrics", "/v1/models", "/v1/models/scripted/model"])
def test_what_takes_get_takes_head(shared: Live, path: str) -> None:
    head, get = shared.client.head(path), shared.client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers.get("content-type") == get.headers.get("content-type")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("PUT", "/v1/chat/completions", "POST"),
        ("OPTIONS", "/v1/completions", "POST"),
        ("OPTIONS", "/health", "GET, HEAD"),
        ("PATCH", "/v1/models", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(shared: Live, method: str, path: str, allowed: str) -> None:
    response = shared.client.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    assert response.json()["error"] == {
        "message": f"{method} is not allowed at {path}: use {allowed}.",
        "type": "invalid_request_error",
        "param": None,
        "code": "method_not_allowed",
    }


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
def test_nothing_there(shared: Live, method: str) -> None:
    response = shared.client.request(method, "/v1/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"
