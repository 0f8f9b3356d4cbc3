"""The official `openai` package works unchanged: chat, stream, completions, models, errors, abort."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.server.live import TIMEOUT, Live
from tests.server.scripted_engine import ScriptedEngine
from xlaserve.errors import OverloadedError

MODEL = "scripted/model"


@pytest.fixture
def client(server: Live) -> Generator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT) as client:
        yield client


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=4, extra_body={"top_k": 3}
    )
    (choice,) = answer.choices
    assert choice.message.content == "abcd"
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (19, 4, 23)
    assert answer.usage.prompt_tokens_details is not None


def test_chat_stream(client: OpenAI) -> None:
    text = ""
    with client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=4, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "abcd"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


def test_chat_stream_helper(client: OpenAI, engine: ScriptedEngine) -> None:
    engine.end_with, engine.fail_after = "stop", 2 * 3
    with client.chat.completions.stream(model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=4, n=2) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert [choice.message.content for choice in final.choices] == ["abcd", "bcde"]


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["x", "y"], n=2, max_tokens=2, echo=True)
    assert [choice.text for choice in answer.choices] == ["xab", "xbc", "yab", "ybc"]
    with client.completions.create(model=MODEL, prompt=[104, 105], max_tokens=3, stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == "abc"


def test_chat_logprobs(client: OpenAI) -> None:
    def ask(**options: Any) -> Any:
        return client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=3, logprobs=True, top_logprobs=3, **options
        )

    content = ask().choices[0].logprobs.content
    assert [(item.token, item.logprob, item.bytes) for item in content] == [(letter, -2.0, [ord(letter)]) for letter in "abc"]
    assert [(top.token, top.logprob) for top in content[1].top_logprobs] == [("1", -1.0), ("b", -2.0), ("3", -3.0)]
    with ask(stream=True) as stream:
        streamed = [item for chunk in stream for choice in chunk.choices if choice.logprobs for item in choice.logprobs.content or []]
    assert streamed == content


def test_chat_logprobs_without_top(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=2, logprobs=True)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert [(item.token, item.top_logprobs) for item in logprobs.content or []] == [("a", []), ("b", [])]


def test_completion_logprobs(client: OpenAI) -> None:
    def ask(**options: Any) -> Any:
        return client.completions.create(model=MODEL, prompt=["x", "y"], n=2, max_tokens=3, logprobs=1, **options)

    whole = [choice.logprobs for choice in ask().choices]
    assert [logprobs.tokens for logprobs in whole] == [["a", "b", "c"], ["b", "c", "d"]] * 2
    assert whole[0].token_logprobs == [-2.0] * 3
    assert whole[0].top_logprobs[0] == {"a": -2.0, "1": -1.0}
    assert whole[0].text_offset == [0, 1, 2]
    fields = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    streamed: list[dict[str, list[Any]]] = [{name: [] for name in fields} for _ in whole]
    with ask(stream=True) as stream:
        for choice in (choice for chunk in stream for choice in chunk.choices if choice.logprobs):
            for name in fields:
                streamed[choice.index][name] += getattr(choice.logprobs, name)
    assert streamed == [{name: getattr(logprobs, name) for name in fields} for logprobs in whole]


def test_echoed_prompts_have_logprobs_too(client: OpenAI) -> None:
    def ask(**options: Any) -> Any:
        return client.completions.create(model=MODEL, prompt=["xyz", "uv"], n=2, max_tokens=2, logprobs=1, echo=True, **options)

    whole = [choice.logprobs for choice in ask().choices]
    assert [logprobs.tokens for logprobs in whole] == [[*"xyzab"], [*"xyzbc"], [*"uvab"], [*"uvbc"]]
    assert whole[1].token_logprobs == [None, -3.0, -3.0, -2.0, -2.0]
    assert whole[1].top_logprobs[:2] == [None, {"y": -3.0}]
    assert whole[1].text_offset == [0, 1, 2, 3, 4]
    streamed: list[list[str]] = [[] for _ in whole]
    texts = [""] * len(whole)
    with ask(stream=True) as stream:
        for choice in (choice for chunk in stream for choice in chunk.choices):
            texts[choice.index] += choice.text
            streamed[choice.index] += choice.logprobs.tokens if choice.logprobs else []
    assert streamed == [logprobs.tokens for logprobs in whole]
    assert texts == ["xyzab", "xyzbc", "uvab", "uvbc"]


def test_prompt_logprobs(client: OpenAI, server: Live) -> None:
    completion = client.completions.create(model=MODEL, prompt="ab", max_tokens=2, extra_body={"prompt_logprobs": 0})
    expected = [None, {"98": {"logprob": -3.0, "rank": 3, "decoded_token": "b"}}]
    assert completion.choices[0].model_dump()["prompt_logprobs"] == expected
    assert completion.choices[0].text == "ab"
    messages = [{"role": "user", "content": "hi"}]
    chat = server.client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 2, "prompt_logprobs": 0}).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert chat["prompt_logprobs"][0] is None


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"


def test_errors(client: OpenAI, engine: ScriptedEngine) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "hi"}])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], temperature=9)
    assert bad.value.param == "temperature"
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi" * 200}])
    assert long.value.code == "context_length_exceeded"
    engine.refusal = OverloadedError("the queue is full")
    with pytest.raises(openai.InternalServerError) as overloaded:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    assert overloaded.value.status_code == 503


def test_an_error_in_the_middle_of_a_stream_is_raised(client: OpenAI, engine: ScriptedEngine) -> None:
    engine.end_with, engine.fail_after = "error", 3
    with client.completions.create(model=MODEL, prompt="a", stream=True) as stream, pytest.raises(openai.APIError, match="engine failed"):
        list(stream)


def test_closing_a_stream_aborts(client: OpenAI, engine: ScriptedEngine) -> None:
    engine.pause_after = 3
    stream = client.completions.create(model=MODEL, prompt="a", max_tokens=100, stream=True)
    assert next(stream).choices[0].text == "a"
    assert engine.running
    stream.close()
    assert engine.aborted.wait(TIMEOUT)
    assert not engine.running


def test_a_client_timeout_aborts(client: OpenAI, engine: ScriptedEngine) -> None:
    engine.pause_after = 3
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).completions.create(model=MODEL, prompt="a", max_tokens=100)
    assert engine.aborted.wait(TIMEOUT)


def test_async_client_cancelled(server: Live, engine: ScriptedEngine) -> None:
    engine.pause_after = 3

    async def cancel() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            task = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}]))
            assert await asyncio.to_thread(engine.paused.wait, TIMEOUT)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancel())
    assert engine.aborted.wait(TIMEOUT)
