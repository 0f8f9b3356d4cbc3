"""vLLM's further fields through the official `openai` package, in whole answers and in streams."""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.server.live import TIMEOUT, Live
from tests.server.scripted_engine import ScriptedEngine
from tests.server.sse import events, logprobs, texts
from tests.server.test_bad_input import assert_error
from xlaserve.engine.outputs import Logprob
from xlaserve.sampling.params import SamplingParams
from xlaserve.server.completions import best
from xlaserve.server.generation import Choice

MODEL = "scripted/model"
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
HI: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(server: Live) -> Generator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT) as client:
        yield client


def complete(client: OpenAI, prompt: Any, max_tokens: int = 2, *, extra: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=max_tokens, extra_body=extra, **fields)
    return [choice.model_dump() for choice in answer.choices]


def test_token_ids(client: OpenAI) -> None:
    choices = complete(client, ["xy", "ABC"], n=2, extra={"return_token_ids": True})
    assert [choice["prompt_token_ids"] for choice in choices] == [[120, 121]] * 2 + [[65, 66, 67]] * 2
    assert [choice["token_ids"] for choice in choices] == [[97, 98], [98, 99]] * 2
    assert "token_ids" not in complete(client, "xy", extra={})[0]


def test_token_ids_of_a_stream_are_those_of_the_whole(client: OpenAI) -> None:
    with client.completions.create(
        model=MODEL, prompt=["x", "yz"], max_tokens=3, n=2, stream=True, extra_body={"return_token_ids": True}
    ) as stream:
        chunks = [choice.model_dump() for chunk in stream for choice in chunk.choices]
    ids: dict[int, list[int]] = {}
    prompts: dict[int, list[Any]] = {}
    for choice in chunks:
        ids.setdefault(choice["index"], []).extend(choice["token_ids"])
        prompts.setdefault(choice["index"], []).append(choice.get("prompt_token_ids"))
    assert ids == {0: [97, 98, 99], 1: [98, 99, 100], 2: [97, 98, 99], 3: [98, 99, 100]}
    # With the first chunk of each choice, and no other.
    assert prompts == {0: [[120], None, None], 1: [[120], None, None], 2: [[121, 122], None, None], 3: [[121, 122], None, None]}


def test_token_ids_of_a_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=2, extra_body={"return_token_ids": True}).model_dump()
    assert bytes(answer["prompt_token_ids"]) == b"<user>hi<assistant>"
    assert answer["choices"][0]["token_ids"] == [97, 98]


def test_token_ids_of_a_streamed_chat(shared: Live) -> None:
    body = {"messages": HI, "max_tokens": 3, "n": 2, "return_token_ids": True, "stream": True, "stream_options": {"include_usage": True}}
    chunks = events(shared.client.post(CHAT, json=body))
    assert [bytes(chunk["prompt_token_ids"]) for chunk in chunks if "prompt_token_ids" in chunk] == [b"<user>hi<assistant>"] * 2
    ids = [(choice["index"], choice["token_ids"]) for chunk in chunks[2:] for choice in chunk["choices"]]
    assert ids == [(0, [97]), (1, [98]), (0, [98]), (1, [99]), (0, [99]), (1, [100])]


def test_tokens_as_token_ids(client: OpenAI) -> None:
    (choice,) = complete(client, "xy", logprobs=2, echo=True, extra={"return_tokens_as_token_ids": True})
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in b"xyab"]
    assert [set(top) for top in choice["logprobs"]["top_logprobs"][1:]] == [
        {"token_id:121"},
        {"token_id:97", "token_id:49"},
        {"token_id:98", "token_id:49"},
    ]
    chat = client.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=1, logprobs=True, top_logprobs=1, extra_body={"return_tokens_as_token_ids": True}
    )
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None
    (token,) = logprobs.content or []
    assert (token.token, token.bytes, token.top_logprobs[0].token) == ("token_id:97", [97], "token_id:49")


@pytest.mark.parametrize(
    ("prompt", "fields", "kept"),
    [
        ("abcdefgh", {"truncate_prompt_tokens": 3}, "fgh"),
        ("abcdefgh", {"truncate_prompt_tokens": 3, "truncation_side": "left"}, "fgh"),
        ("abcdefgh", {"truncate_prompt_tokens": 3, "truncation_side": "right"}, "abc"),
        ("abc", {"truncate_prompt_tokens": 3}, "abc"),
        ("abc", {"truncate_prompt_tokens": 100}, "abc"),
        ("abc", {"truncate_prompt_tokens": None}, "abc"),
        (list(b"abcdefgh"), {"truncate_prompt_tokens": 2}, "gh"),
        (list(b"abcdefgh"), {"truncate_prompt_tokens": 2, "truncation_side": "right"}, "ab"),
        ("x" * 100_000 + "end", {"truncate_prompt_tokens": 4}, "xend"),
        ("start" + "x" * 100_000, {"truncate_prompt_tokens": 6, "truncation_side": "right"}, "startx"),
        ("y" * 1000, {"truncate_prompt_tokens": -1, "max_tokens": 28}, "y" * 100),
        ("y" * 1000, {"truncate_prompt_tokens": -1, "max_tokens": None}, "y" * 112),
        ([65] * 1000, {"truncate_prompt_tokens": -1}, "A" * 126),
    ],
)
def test_truncated_prompts(server: Live, engine: ScriptedEngine, prompt: Any, fields: dict[str, Any], kept: str) -> None:
    body = {"prompt": prompt, "max_tokens": 2, "echo": True, **fields}
    answer = server.client.post(COMPLETIONS, json=body).json()
    assert bytes(engine.submitted[0].prompt_token_ids).decode() == kept
    assert answer["choices"][0]["text"].startswith(kept)
    assert answer["usage"]["prompt_tokens"] == len(kept)


def test_a_truncated_chat(server: Live, engine: ScriptedEngine) -> None:
    body = {"messages": HI, "max_tokens": 1, "truncate_prompt_tokens": 13}
    assert server.client.post(CHAT, json=body).json()["usage"]["prompt_tokens"] == 13
    assert bytes(engine.submitted[0].prompt_token_ids).decode() == "hi<assistant>"


def test_scoring_only(client: OpenAI, engine: ScriptedEngine) -> None:
    answer = client.completions.create(model=MODEL, prompt=[[120, 121, 122], [65, 66]], max_tokens=0, echo=True, logprobs=1)
    assert [choice.text for choice in answer.choices] == ["xyz", "AB"]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    first, second = (choice.logprobs for choice in answer.choices)
    assert first is not None
    assert second is not None
    assert (first.tokens, first.token_logprobs, first.text_offset) == (["x", "y", "z"], [None, -3.0, -3.0], [0, 1, 2])
    assert (second.tokens, second.token_logprobs) == (["A", "B"], [None, -3.0])
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 0, 5)
    assert engine.submitted[0].params == SamplingParams(max_tokens=1, logprobs=1, prompt_logprobs=1)


def test_scoring_only_in_a_stream(shared: Live) -> None:
    body = {"prompt": ["xyz", "u"], "max_tokens": 0, "echo": True, "logprobs": 0, "n": 2}
    whole = shared.client.post(COMPLETIONS, json=body).json()
    chunks = events(shared.client.post(COMPLETIONS, json={**body, "stream": True, "stream_options": {"include_usage": True}}))
    assert texts(chunks) == {0: "xyz", 1: "xyz", 2: "u", 3: "u"}
    assert logprobs(chunks) == logprobs([whole])
    assert chunks[-1]["usage"] == whole["usage"]


def test_no_tokens_without_echo_is_a_mistake(shared: Live) -> None:
    assert assert_error(400, shared.client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 0}))["param"] == "max_tokens"


def test_the_best_of_several(client: OpenAI, engine: ScriptedEngine) -> None:
    answer = client.completions.create(model=MODEL, prompt=["x", "y"], best_of=4, n=2, max_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    # All four are equally likely, so the first two count.
    assert [choice.text for choice in answer.choices] == ["abc", "bcd", "abc", "bcd"]
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2 * 4 * 3
    assert engine.submitted[0].params.n == 4


def test_the_best_has_the_highest_log_probability_per_token() -> None:
    def choice(index: int, *logprobs: float) -> Choice:
        return Choice(index, token_ids=[5] * len(logprobs), logprobs=[{5: Logprob(value, 1, "x")} for value in logprobs])

    choices = [choice(0, -3.0), choice(1, -1.0, -1.5, -1.0), choice(2, -2.0, -0.1), choice(3)]
    assert [found.index for found in best(choices, 3)] == [3, 2, 1]
    assert best(choices, 4) is choices


def test_a_name_for_the_request(client: OpenAI, engine: ScriptedEngine) -> None:
    for _ in range(2):  # twice, as in a retry
        answer = client.completions.create(model=MODEL, prompt="x", max_tokens=1, extra_body={"request_id": "mine-1"})
        assert answer.id == "cmpl-mine-1"
    chat = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=1, extra_body={"request_id": "mine-1"})
    assert chat.id == "chatcmpl-mine-1"
    assert all("mine-1" in stream.request_id for stream in engine.submitted)


@pytest.mark.parametrize(("interval", "pieces"), [(1, 10), (3, 4), (4, 4), (20, 2), (None, 10)])
def test_stream_interval(client: OpenAI, interval: int | None, pieces: int) -> None:
    with client.completions.create(
        model=MODEL, prompt="x", max_tokens=10, logprobs=0, stream=True, extra_body={"stream_interval": interval}
    ) as stream:
        chunks = [choice for chunk in stream for choice in chunk.choices]
    assert "".join(choice.text for choice in chunks) == "abcdefghij"
    assert [token for choice in chunks if choice.logprobs for token in choice.logprobs.tokens or ()] == list("abcdefghij")
    assert len(chunks) == pieces
    assert chunks[0].text == "a", "the first token at once"


def test_stream_interval_of_a_chat(shared: Live) -> None:
    body = {"messages": HI, "max_tokens": 10, "n": 2, "stream": True, "stream_interval": 4}
    chunks = events(shared.client.post(CHAT, json=body))
    assert texts(chunks) == {0: "abcdefghij", 1: "bcdefghijk"}
    assert len(chunks) == 2 + 2 * 4


def test_stream_interval_loses_nothing_when_the_engine_fails(server: Live, engine: ScriptedEngine) -> None:
    engine.failure, engine.fail_after = RuntimeError("gone"), 5
    body = {"prompt": "x", "max_tokens": 10, "stream": True, "stream_interval": 8}
    frames = server.client.post(COMPLETIONS, json=body).text.split("\n\n")
    assert '"text":"bcde"' in frames[1]
    assert '"error"' in frames[2]
    assert frames[3:] == ["data: [DONE]", ""]


def test_a_seed_of_minus_one_is_none(client: OpenAI, engine: ScriptedEngine) -> None:
    client.completions.create(model=MODEL, prompt="x", max_tokens=1, seed=-1)
    client.completions.create(model=MODEL, prompt="x", max_tokens=1, seed=0)
    assert [stream.params.seed for stream in engine.submitted] == [None, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize("stop", [None, [], ["x"], "x"])
def test_every_kind_of_stop(client: OpenAI, engine: ScriptedEngine, stop: Any) -> None:
    client.completions.create(model=MODEL, prompt="x", max_tokens=1, stop=stop)
    params = engine.submitted[0].params
    assert isinstance(params, SamplingParams)
    assert params.stop == (("x",) if stop else ())


def test_unknown_fields_are_named_in_the_debug_log(client: OpenAI, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "xlaserve.server.unsupported"):
        complete(client, "x", extra={"temprature": 0.5, "routing_hint": {"a": 1}, "user": "someone"})
    (record,) = [record for record in caplog.records if record.name == "xlaserve.server.unsupported"]
    assert "routing_hint, temprature" in record.getMessage()
    assert "user" not in record.getMessage()


@pytest.mark.parametrize("path", ["embeddings", "score", "rerank"])
def test_no_embedding_model(server: Live, path: str) -> None:
    for route in (f"/v1/{path}", *([f"/{path}"] if path != "embeddings" else [])):
        for content in (b'{"input": "a"}', b"", b"{"):
            error = assert_error(400, server.client.post(route, content=content))
            assert (error["code"], error["param"]) == ("unsupported_by_model", "model")
            assert MODEL in error["message"]


def test_embeddings_are_refused_at_once(server: Live) -> None:
    """A client that retries, as all do by default, does not: the answer would be the same."""
    sent: list[httpx.Request] = []
    with (
        httpx.Client(event_hooks={"request": [sent.append]}) as counting,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=5, http_client=counting) as client,
        pytest.raises(openai.BadRequestError) as refused,
    ):
        client.embeddings.create(model=MODEL, input="hello")
    assert refused.value.code == "unsupported_by_model"
    assert len(sent) == 1
