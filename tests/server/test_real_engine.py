"""The server on a real engine with a tiny model: streams, stops, disconnects, crowds, and an engine that dies.

All but the last tests ask `xlaserve serve` as users run it, whose engine is a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.conftest import TINY_ENGINE
from tests.server.live import TIMEOUT, Live, live_server
from tests.server.served import Served
from tests.server.served import serving as serving_processes
from tests.server.sse import endings, events, logprobs, texts
from tests.server.strict import sent
from tests.server.test_bad_input import assert_error
from xlaserve import AsyncLLM

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello there"}]}


@contextmanager
def serving(model: Path) -> Generator[tuple[Live, AsyncLLM]]:
    engine = AsyncLLM(str(model), **TINY_ENGINE)
    try:
        with live_server(engine) as live:
            yield live, engine
    finally:
        asyncio.run(engine.close())


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[[str], Path]) -> Generator[Served]:
    with serving_processes(tiny_model("llama3"), "--log-level=warning") as served:
        served.read_until_ready()
        yield served


def metric(live: Served, name: str) -> float:
    (line,) = (line for line in live.client.get("/metrics").text.splitlines() if line.startswith(name + "{"))
    return float(line.rpartition(" ")[2])


def assert_becomes_idle(live: Served) -> None:
    # An abort reaches the engine between two of its steps.
    for _ in range(10_000):
        if metric(live, "xlaserve:num_requests_running") == 0 and metric(live, "xlaserve:kv_cache_usage_perc") == 0:
            return
    raise AssertionError("blocks stay in use")


TOLERANCE = 1e-4
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}, "number": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["answer", "number"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
CASES: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"prompt": "hello", "temperature": 0}),
    (COMPLETIONS, {"prompt": "hello", "seed": 1, "max_tokens": 40}),
    (COMPLETIONS, {"prompt": "hello", "seed": 1, "max_tokens": 40, "n": 3, "echo": True}),
    (COMPLETIONS, {"prompt": ["hello", "another one", "x"], "seed": 2, "max_tokens": 20, "n": 2}),
    (COMPLETIONS, {"prompt": [5, 6, 7], "seed": 3, "max_tokens": 30, "skip_special_tokens": False}),
    (COMPLETIONS, {"prompt": [[5, 6], list(range(10, 150))], "seed": 3, "max_tokens": 30, "top_k": 2**63}),
    (COMPLETIONS, {"prompt": "hello", "seed": 4, "max_tokens": 60, "stop": ["e", "a", "th"], "n": 4}),
    (
        COMPLETIONS,
        {"prompt": "hello", "seed": 4, "max_tokens": 60, "stop": ["e", "a"], "include_stop_str_in_output": True, "min_tokens": 10},
    ),
    (COMPLETIONS, {"prompt": "hello", "seed": 5, "max_tokens": 60, "stop_token_ids": list(range(0, 512, 40)), "ignore_eos": True}),
    (COMPLETIONS, {"prompt": "hello", "seed": 6, "temperature": 2, "top_p": 0.7, "min_p": 0.01, "max_tokens": 60}),
    (CHAT, {**HELLO, "seed": 7, "max_tokens": 40, "n": 2}),
    (CHAT, {**HELLO, "seed": 7, "max_tokens": 60, "n": 2, "response_format": FORMAT}),
    (COMPLETIONS, {"prompt": "hello", "seed": 8, "max_tokens": 40, "logprobs": 1, "structured_outputs": {"regex": "[0-9]{3} to [0-9]"}}),
    (COMPLETIONS, {"prompt": "hello", "seed": 8, "max_tokens": 40, "logprobs": 3, "n": 2, "stop": ["e", "th"]}),
    (COMPLETIONS, {"prompt": ["hello there", "x"], "seed": 8, "max_tokens": 20, "logprobs": 2, "n": 2, "echo": True}),
    (CHAT, {**HELLO, "seed": 9, "max_tokens": 40, "logprobs": True, "top_logprobs": 5, "presence_penalty": 1.5}),
    (
        COMPLETIONS,
        {
            "prompt": ["hello", "x"],
            "seed": 9,
            "max_tokens": 40,
            "repetition_penalty": 1.3,
            "logit_bias": {"7": 4},
            "bad_words": ["a", "th"],
        },
    ),
    (CHAT, {**HELLO, "temperature": 0}),
]


def alike(a: Any, b: Any) -> bool:
    """Equal but for the noise of logits that were computed in other company."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    return bool(abs(a - b) < TOLERANCE) if isinstance(a, float) and isinstance(b, float) else bool(a == b)


@pytest.mark.parametrize(("path", "body"), CASES)
def test_stream_equals_whole(tiny: Served, path: str, body: dict[str, Any]) -> None:
    response = tiny.client.post(path, json=body)
    assert response.status_code == 200, response.text
    whole = response.json()
    chunks = events(tiny.client.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}}))
    content = {choice["index"]: choice["message"]["content"] if path == CHAT else choice["text"] for choice in whole["choices"]}
    assert texts(chunks) == content
    assert alike(logprobs(chunks), logprobs([whole]))
    assert bool(logprobs(chunks)) == bool(body.get("logprobs"))
    assert endings(chunks) == {choice["index"]: (choice["finish_reason"], choice["stop_reason"]) for choice in whole["choices"]}
    # All but the cached tokens: the second of two equal requests finds the prompt of the first.
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [chunks[-1]["usage"][name] for name in counts] == [whole["usage"][name] for name in counts]
    assert {reason for reason, _ in endings(chunks).values()} <= {"stop", "length"}


def test_what_has_a_form_fits_it_and_what_has_no_sense_is_refused(tiny: Served) -> None:
    body = {**HELLO, "temperature": 0, "max_tokens": 100, "structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}}
    before = metric(tiny, "xlaserve:forced_tokens_total")
    (choice,) = tiny.client.post(CHAT, json=body).json()["choices"]
    assert choice["finish_reason"] == "stop"
    answer = json.loads(choice["message"]["content"])
    assert answer["answer"] in ("yes", "no")
    assert 0 <= answer["number"] <= 9
    assert metric(tiny, "xlaserve:forced_tokens_total") > before
    for stream in (False, True):
        for field, value in (("regex", "(["), ("grammar", "start: nothing"), ("json", {"type": "colour"})):
            refused = tiny.client.post(CHAT, json={**body, "stream": stream, "structured_outputs": {field: value}})
            assert assert_error(400, refused)["param"] == f"structured_outputs.{field}"
    assert metric(tiny, "xlaserve:compile_events_total") == 0


def test_the_other_apis_take_forms_too(tiny: Served) -> None:
    form = {"type": "json_schema", "name": "answer", "schema": SCHEMA}
    body = {"input": "hello", "temperature": 1, "seed": 1, "max_output_tokens": 200, "text": {"format": form}}
    response = tiny.client.post("/v1/responses", json=body).json()
    message = tiny.client.post(
        "/v1/messages",
        json={
            **HELLO,
            "temperature": 1,
            "seed": 1,
            "max_tokens": 200,
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        },
    ).json()
    for text in (response["output"][0]["content"][0]["text"], message["content"][0]["text"]):
        assert json.loads(text)["answer"] in ("yes", "no")
    nonsense = {"type": "json_schema", "name": "answer", "schema": {"type": "colour"}}
    refused = tiny.client.post("/v1/responses", json={**body, "text": {"format": nonsense}})
    assert assert_error(400, refused)["param"].startswith("text.format")
    refused = tiny.client.post("/v1/messages", json={**HELLO, "max_tokens": 9, "output_config": {"format": nonsense}})
    assert refused.status_code == 400
    assert "colour" in refused.json()["error"]["message"]


def test_logprobs_of_both_endpoints_are_of_the_same_tokens(tiny: Served) -> None:
    body = {"prompt": "hello", "temperature": 0, "max_tokens": 8, "ignore_eos": True, "logprobs": 4}
    (choice,) = tiny.client.post(COMPLETIONS, json=body).json()["choices"]
    found = choice["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["top_logprobs"]) == 8
    for token, value, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert top[token] == value == max(top.values()), "greedy"
        assert 4 >= len(top) > 1
    answer = tiny.client.post(CHAT, json={**HELLO, "temperature": 0, "max_tokens": 8, "logprobs": True, "top_logprobs": 2}).json()
    (choice,) = answer["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    shown = content[:-1] if choice["finish_reason"] == "stop" else content
    assert (
        b"".join(bytes(item["bytes"]) for item in shown)
        .decode("utf-8", "replace")
        .startswith(choice["message"]["content"].rstrip("\ufffd"))
    )
    for item in content:
        assert item["top_logprobs"][0] == {name: item[name] for name in ("token", "logprob", "bytes")}


def test_penalties_change_the_answer(tiny: Served) -> None:
    body = {"prompt": "hello", "temperature": 0, "max_tokens": 30, "ignore_eos": True}
    plain = tiny.client.post(COMPLETIONS, json=body).json()["choices"][0]["text"]
    for extra in (
        {"frequency_penalty": 2},
        {"presence_penalty": 2},
        {"repetition_penalty": 2},
        {"logit_bias": {"7": 100}},
        {"allowed_token_ids": [7]},
    ):
        assert tiny.client.post(COMPLETIONS, json={**body, **extra}).json()["choices"][0]["text"] != plain
    assert tiny.client.post(COMPLETIONS, json=body).json()["choices"][0]["text"] == plain


def test_a_beam_search(tiny: Served) -> None:
    body = {"prompt": [5, 6, 7, 8], "use_beam_search": True, "n": 3, "max_tokens": 20, "ignore_eos": True}
    searched = tiny.client.post(COMPLETIONS, json=body).json()
    assert [choice["index"] for choice in searched["choices"]] == [0, 1, 2]
    assert {choice["finish_reason"] for choice in searched["choices"]} == {"length"}
    assert len({choice["text"] for choice in searched["choices"]}) > 1
    assert searched["usage"]["completion_tokens"] == 60
    greedy = tiny.client.post(COMPLETIONS, json={**body, "use_beam_search": False, "n": 1, "temperature": 0}).json()
    alone = tiny.client.post(COMPLETIONS, json={**body, "n": 1}).json()
    assert alone["choices"][0]["text"] == greedy["choices"][0]["text"]
    # More than the engine can hold at once.
    refused = tiny.client.post(COMPLETIONS, json={**body, "n": 9})
    error = assert_error(400, refused)
    assert (error["param"], "at most 8 sequences at once" in error["message"]) == ("n", True)


def test_stop_strings_end_the_text_before_the_match(tiny: Served) -> None:
    free = tiny.client.post(COMPLETIONS, json={"prompt": "hello", "temperature": 0, "max_tokens": 60, "ignore_eos": True}).json()
    text = free["choices"][0]["text"]
    stop = text[len(text) // 2 :][:3]
    ended = tiny.client.post(
        COMPLETIONS, json={"prompt": "hello", "temperature": 0, "max_tokens": 60, "ignore_eos": True, "stop": stop}
    ).json()
    (choice,) = ended["choices"]
    assert choice["text"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert ended["usage"]["completion_tokens"] < free["usage"]["completion_tokens"]


def test_chat_goes_on_to_the_model_length_by_default(tiny: Served) -> None:
    usage = tiny.client.post(CHAT, json={**HELLO, "ignore_eos": True}).json()["usage"]
    assert usage["total_tokens"] == TINY_ENGINE["max_model_len"]


def test_a_prompt_that_just_fits(tiny: Served) -> None:
    longest = TINY_ENGINE["max_model_len"] - 1
    assert tiny.client.post(COMPLETIONS, json={"prompt": [5] * longest}).json()["usage"]["completion_tokens"] == 1
    assert_error(400, tiny.client.post(COMPLETIONS, json={"prompt": [5] * (longest + 1)}))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop_token_ids": [512]}, "stop_token_ids"),
        ({"stop_token_ids": [2**40]}, "stop_token_ids"),
        ({"prompt": [512]}, "prompt"),
        ({"min_tokens": 2**40, "max_tokens": None}, "min_tokens"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_what_the_engine_refuses(tiny: Served, fields: dict[str, Any], param: str) -> None:
    assert assert_error(400, tiny.client.post(COMPLETIONS, json={"prompt": "a", **fields}))["param"] == param


@pytest.mark.parametrize("value", [2**31, 2**32, 2**63 - 1, -(2**63)])
def test_extreme_numbers_do_not_hurt_the_engine(tiny: Served, value: int) -> None:
    body = {"prompt": "a", "max_tokens": 2, "seed": value, "top_k": abs(value), "temperature": 1e-300}
    assert tiny.client.post(COMPLETIONS, json=body).status_code == 200
    assert tiny.client.post(COMPLETIONS, json={**body, "temperature": 1e-4, "top_p": 1e-300, "min_p": 1e-300}).status_code == 200
    assert tiny.client.get("/health").status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_disconnecting_frees_the_blocks(tiny: Served, stream: bool) -> None:
    before = metric(tiny, "xlaserve:generation_tokens_total")
    body = {**HELLO, "ignore_eos": True, "n": 8, "stream": stream}
    if stream:
        with tiny.client.stream("POST", CHAT, json=body) as response:
            next(response.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            tiny.client.post(CHAT, json=body, timeout=0.02)
    assert_becomes_idle(tiny)
    assert metric(tiny, "xlaserve:generation_tokens_total") - before < 8 * 200


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"seed": 3, "top_logprobs": 2}, {"seed": 4, "ignore_eos": True}])
def test_streamed_response_equals_whole(tiny: Served, fields: dict[str, Any]) -> None:
    body = {"input": "hello there", "max_output_tokens": 40, **fields}
    whole = tiny.client.post("/v1/responses", json=body).json()
    told = sent(tiny.client.post("/v1/responses", json={**body, "stream": True}))
    last = told[-1][1]["response"]
    assert (last["status"], last["usage"]["output_tokens"]) == (whole["status"], whole["usage"]["output_tokens"])
    (part,), streamed = whole["output"][0]["content"], last["output"][0]["content"][0]
    assert streamed["text"] == part["text"] == "".join(data["delta"] for name, data in told if name == "response.output_text.delta")
    deltas = [found for name, data in told if name == "response.output_text.delta" for found in data["logprobs"]]
    assert deltas == streamed["logprobs"]
    assert alike(deltas, part["logprobs"])
    assert bool(deltas) == ("top_logprobs" in fields)


def test_streamed_message_equals_whole(tiny: Served) -> None:
    body = {"messages": HELLO["messages"], "max_tokens": 30, "seed": 5}
    whole = tiny.client.post("/v1/messages", json=body).json()
    told = sent(tiny.client.post("/v1/messages", json={**body, "stream": True}))
    assert "".join(data["delta"]["text"] for name, data in told if name == "content_block_delta") == whole["content"][0]["text"]
    assert told[-2][1]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    assert told[-2][1]["delta"]["stop_reason"] == whole["stop_reason"]


def test_cancelling_frees_the_blocks(tiny: Served) -> None:
    body = {"input": "hello", "background": True, "ignore_eos": True}
    made = [tiny.client.post("/v1/responses", json=body).json()["id"] for _ in range(6)]
    for response_id in made[:3]:
        assert tiny.client.post(f"/v1/responses/{response_id}/cancel").json()["status"] in ("cancelled", "incomplete")
    for response_id in made[3:]:
        assert tiny.client.delete(f"/v1/responses/{response_id}").status_code == 200
    assert_becomes_idle(tiny)


def test_a_mixed_crowd_gets_what_each_would_get_alone_and_nothing_compiles(tiny: Served) -> None:
    rng = random.Random(0)

    def body() -> dict[str, Any]:
        prompt = [rng.randrange(4, 500) for _ in range(rng.randint(1, 150))]
        how = rng.choice([{"temperature": 0}, {"seed": rng.randrange(100), "top_p": 0.9}, {"seed": rng.randrange(100), "top_k": 5}])
        return {"prompt": prompt, "max_tokens": rng.randint(1, 20), "n": rng.choice([1, 1, 1, 2, 5]), **how}

    bodies = [body() for _ in range(200)]
    alone = {number: tiny.client.post(COMPLETIONS, json=bodies[number]).json()["choices"] for number in range(0, 200, 10)}

    async def crowd() -> list[Any]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=tiny.url, timeout=TIMEOUT * 4, limits=limits) as client:

            async def one(number: int) -> Any:
                if number % 10 == 5:
                    async with client.stream("POST", COMPLETIONS, json={**bodies[number], "stream": True}):
                        return None
                response = await client.post(COMPLETIONS, json=bodies[number])
                assert response.status_code == 200, response.text
                return response.json()["choices"]

            return await asyncio.gather(*(one(number) for number in range(200)))

    together = asyncio.run(crowd())
    assert {number: together[number] for number in alone} == alone
    assert metric(tiny, "xlaserve:compile_events_total") == 0
    assert_becomes_idle(tiny)


def test_openai_client(tiny: Served) -> None:
    with OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
        (model,) = client.models.list()
        whole = client.chat.completions.create(
            model=model.id, messages=[{"role": "user", "content": "hello"}], temperature=0, max_tokens=20, extra_body={"ignore_eos": True}
        )
        with client.chat.completions.create(
            model=model.id,
            messages=[{"role": "user", "content": "hello"}],
            temperature=0,
            max_tokens=20,
            stream=True,
            extra_body={"ignore_eos": True},
        ) as stream:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 20
        with client.completions.create(
            model=model.id, prompt="hello", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
        ) as stream:
            next(stream)
    assert_becomes_idle(tiny)


def test_closing_the_engine_ends_streams_with_an_error(tiny_model: Callable[[str], Path]) -> None:
    with (
        serving(tiny_model("llama3")) as (live, engine),
        live.client.stream("POST", CHAT, json={**HELLO, "n": 8, "stream": True}) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        live.state.stop()
        asyncio.run(engine.close())
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "shutting_down"


def test_an_engine_that_dies(tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from xlaserve.engine.core import EngineCore

    with serving(tiny_model("llama3")) as (live, _):

        def step(self: EngineCore) -> None:
            raise RuntimeError("the device is gone: /dev/secret/thing")

        monkeypatch.setattr(EngineCore, "step", step)
        error = assert_error(500, live.client.post(CHAT, json=HELLO))
        assert error["code"] == "engine_dead"
        assert "secret" not in error["message"]
        assert_error(500, live.client.post(COMPLETIONS, json={"prompt": "a", "stream": True}))
        assert live.client.get("/health").status_code == 503
        assert live.client.get("/ready").json()["status"] == "dead"
