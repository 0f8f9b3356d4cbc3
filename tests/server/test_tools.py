"""Tools and reasoning over HTTP: what clients get, streamed in any pieces and whole, and what the model reads."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from openai import OpenAI

from tests.server.live import TIMEOUT, Live, live_server
from tests.server.replaying_engine import ReplayingEngine
from tests.server.sse import endings, events
from xlaserve.server.settings import ChatSettings

CHAT = "/v1/chat/completions"
# As Qwen's, with what matters here.
QWEN = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}</tool_call>"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
SPECIAL = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
HELLO = {"messages": [{"role": "user", "content": "hi"}]}
ASK = {**HELLO, "tools": [WEATHER, NOW]}
PARIS = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris é😀"}}\n</tool_call>'
TWO = f'<think>\nI need both.\n</think>\n\nOne moment.\n{PARIS}\n<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call><|im_end|>'


@contextmanager
def replaying(template: str = QWEN, special: tuple[str, ...] = SPECIAL, **settings: Any) -> Generator[tuple[Live, ReplayingEngine]]:
    engine = ReplayingEngine(template, special)
    with live_server(engine, **settings) as live:
        yield live, engine


@pytest.fixture(scope="module")
def served() -> Generator[tuple[Live, ReplayingEngine]]:
    with replaying() as pair:
        yield pair


def message_of(chunks: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """The message that a stream's chunks make, read as strictly as OpenAI's clients do."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "reasoning_content": "", "calls": [], "logprobs": []}
    for choice in (choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index):
        delta = choice["delta"]
        for name in ("content", "reasoning", "reasoning_content"):
            message[name] += delta.get(name, "")
        message["logprobs"] += (choice["logprobs"] or {}).get("content", [])
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(message["calls"])
                assert call["type"] == "function"
                message["calls"].append((call["function"]["name"], ""))
            else:
                assert set(call) == {"index", "function"}
                assert set(call["function"]) == {"arguments"}
            name, arguments = message["calls"][call["index"]]
            message["calls"][call["index"]] = name, arguments + call["function"]["arguments"]
    return message


def calls_of(message: dict[str, Any]) -> list[tuple[str, str]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]


ANSWERS = [
    TWO,
    PARIS,
    f"{PARIS}{PARIS}",
    "plain <b>text</b> with a < b and <tool",
    "<think>only thoughts",
    "<tool_call>not a call</tool_call> 中文 🦓",
    '<tool_call>{"name": "get_weather", "arguments": {"city": "cut',
    "",
]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("seed", range(3))
def test_stream_equals_whole(served: tuple[Live, ReplayingEngine], answer: str, seed: int) -> None:
    live, engine = served
    engine.answers, engine.seed = [answer, answer[::-1], answer + answer], seed
    body = {**ASK, "n": 3, "logprobs": True}
    whole = live.client.post(CHAT, json=body).json()
    engine.seed = seed + 100
    chunks = events(live.client.post(CHAT, json={**body, "stream": True, "stream_options": {"include_usage": True}}))
    for choice in whole["choices"]:
        streamed, message = message_of(chunks, choice["index"]), choice["message"]
        assert streamed["content"] == (message["content"] or "")
        assert streamed["reasoning"] == streamed["reasoning_content"] == message.get("reasoning", "")
        assert streamed["calls"] == calls_of(message)
        assert streamed["logprobs"] == choice["logprobs"]["content"]
        assert not any(marker in streamed["content"] for marker in SPECIAL)
    assert endings(chunks) == {choice["index"]: (choice["finish_reason"], choice["stop_reason"]) for choice in whole["choices"]}
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_an_answer_with_everything(served: tuple[Live, ReplayingEngine]) -> None:
    live, engine = served
    engine.answers = [TWO]
    answer = live.client.post(CHAT, json=ASK).json()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] == "One moment."
    assert message["reasoning"] == message["reasoning_content"] == "I need both."
    assert calls_of(message) == [("get_weather", '{"city": "Paris é😀"}'), ("now", "{}")]
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert 0 < answer["usage"]["completion_tokens_details"]["reasoning_tokens"] < answer["usage"]["completion_tokens"]
    engine.answers = [PARIS]
    assert live.client.post(CHAT, json=ASK).json()["choices"][0]["message"]["content"] is None


def test_fields_that_shape_the_answer(served: tuple[Live, ReplayingEngine]) -> None:
    live, engine = served
    engine.answers = [TWO]

    def ask(**fields: Any) -> dict[str, Any]:
        choice: dict[str, Any] = live.client.post(CHAT, json={**ASK, **fields}).json()["choices"][0]
        return choice

    assert [name for name, _ in calls_of(ask(parallel_tool_calls=False)["message"])] == ["get_weather"]
    quiet = ask(include_reasoning=False)["message"]
    assert "reasoning" not in quiet
    assert quiet["content"] == "One moment."
    unread = ask(tool_choice="none")
    assert unread["finish_reason"] == "stop"
    assert "get_weather" in unread["message"]["content"]
    assert "<tools>" not in engine.prompt
    raw = ask(skip_special_tokens=False)["message"]
    assert raw["content"].endswith("<|im_end|>")
    assert len(raw["tool_calls"]) == 2


def test_a_cut_call_ends_with_length(served: tuple[Live, ReplayingEngine]) -> None:
    live, engine = served
    engine.answers, engine.ends_with = ['<tool_call>{"name": "now", "arguments": {"a": '], "length"
    try:
        (choice,) = live.client.post(CHAT, json=ASK).json()["choices"]
    finally:
        engine.ends_with = "stop"
    assert choice["finish_reason"] == "length"
    assert calls_of(choice["message"]) == [("now", '{"a": ')]


def test_what_the_model_reads(served: tuple[Live, ReplayingEngine]) -> None:
    live, engine = served
    history = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": None,
            "reasoning": "hm",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    body = {"messages": history, "tools": [WEATHER], "reasoning_effort": "none"}
    assert live.client.post(CHAT, json=body).status_code == 200
    assert engine.prompt == (
        f"<tools>{json.dumps([WEATHER])}</tools><|user|>hi<|assistant|><think>hm</think>"
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call><|tool|>sunny<|assistant|><think></think>'
    )
    # A model may think nevertheless.
    engine.answers = ["<think>so</think>yes"]
    message = live.client.post(CHAT, json={**HELLO, "reasoning_effort": "none"}).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("so", "yes")


def test_reasoning_that_the_prompt_opens() -> None:
    with replaying(QWEN.replace("<|assistant|>{%", "<|assistant|><think>\n{%", 1)) as (live, engine):
        engine.answers = ["I think.\n</think>\n\nHello."]
        message = live.client.post(CHAT, json=HELLO).json()["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == ("I think.", "Hello.")


def test_templates_that_know_nothing_of_tools() -> None:
    with replaying(PLAIN, ()) as (live, engine):
        engine.answers = [PARIS]
        call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
        history = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "Well.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "noon"},
            {"role": "tool", "tool_call_id": "c2", "content": "late"},
        ]
        answer = live.client.post(CHAT, json={"messages": history, "tools": [WEATHER]}).json()
        assert calls_of(answer["choices"][0]["message"]) == [("get_weather", '{"city": "Paris é😀"}')]
        assert engine.prompt.startswith("<|system|>You can call functions.")
        assert json.dumps(WEATHER) in engine.prompt
        assert engine.prompt.endswith(
            '<|user|>hi<|assistant|>Well.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
            "<|user|><tool_response>\nnoon\n</tool_response>\n<tool_response>\nlate\n</tool_response><|assistant|>"
        )
        with_system = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
        assert live.client.post(CHAT, json={"messages": with_system, "tools": [WEATHER]}).status_code == 200
        assert engine.prompt.startswith("<|system|>Be kind.\n\nYou can call functions.")


def test_unknown_formats_must_be_named() -> None:
    template = "{{ tools }}" + PLAIN
    with replaying(template, ()) as (live, _):
        error = live.client.post(CHAT, json=ASK)
        assert error.status_code == 400
        assert error.json()["error"]["param"] == "tools"
    with replaying(template, (), chat=ChatSettings(tool_call_parser="pythonic")) as (live, engine):
        engine.answers = ["[now()]"]
        assert calls_of(live.client.post(CHAT, json=ASK).json()["choices"][0]["message"]) == [("now", "{}")]
    with replaying(template, (), chat=ChatSettings(tool_call_parser="none")) as (live, engine):
        engine.answers = [PARIS]
        assert live.client.post(CHAT, json=ASK).json()["choices"][0]["message"]["content"] == PARIS


def test_templates_of_the_server_and_of_requests() -> None:
    mine = "[{{ messages[0].content }}]{{ documents[0].text if documents }}{{ mood }}"
    with replaying(chat=ChatSettings(template=mine)) as (live, engine):
        assert live.client.post(CHAT, json={**HELLO, "chat_template_kwargs": {"mood": "!"}}).status_code == 200
        assert engine.prompt == "[hi]!"
        refused = live.client.post(CHAT, json={**HELLO, "chat_template": "x"})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "chat_template"
    with replaying(chat=ChatSettings(trust_request_template=True)) as (live, engine):
        assert live.client.post(CHAT, json={**HELLO, "chat_template": mine, "documents": [{"text": "doc"}]}).status_code == 200
        assert engine.prompt == "[hi]doc"
        assert live.client.post(CHAT, json={**HELLO, "chat_template": "{% broken"}).status_code == 400


@pytest.mark.parametrize(
    ("form", "content", "expected"),
    [
        ("auto", "a", "a"),
        ("auto", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        ("string", [{"type": "text", "text": "a"}, "b"], "a\nb"),
        ("openai", "a", "[{'type': 'text', 'text': 'a'}]"),
    ],
)
def test_content_formats(form: Any, content: Any, expected: str) -> None:
    template = (
        "{{ messages[0].content }}" if form != "openai" else "{{ messages[0].content }}{% for p in messages[0].content %}{% endfor %}"
    )
    with replaying(template, chat=ChatSettings(content_format=form)) as (live, engine):
        assert live.client.post(CHAT, json={"messages": [{"role": "user", "content": content}]}).status_code == 200
        assert engine.prompt == expected


def test_openai_client(served: tuple[Live, ReplayingEngine]) -> None:
    live, engine = served
    engine.answers = [TWO]
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT) as client:
        asked: dict[str, Any] = {"model": "scripted/model", "messages": HELLO["messages"], "tools": [WEATHER, NOW]}
        whole = client.chat.completions.create(**asked).choices[0]
        assert whole.finish_reason == "tool_calls"
        assert whole.message.tool_calls is not None
        assert [json.loads(call.function.arguments) for call in whole.message.tool_calls] == [{"city": "Paris é😀"}, {}]  # type: ignore[union-attr]
        assert whole.message.model_extra is not None
        assert whole.message.model_extra["reasoning"] == "I need both."
        with client.chat.completions.stream(**asked) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion().choices[0]
        assert kinds.count("tool_calls.function.arguments.done") == 2
        assert "tool_calls.function.arguments.delta" in kinds
        assert final.finish_reason == "tool_calls"
        assert final.message.content == "One moment."
        assert [(call.function.name, call.function.arguments) for call in final.message.tool_calls or []] == calls_of(
            live.client.post(CHAT, json=ASK).json()["choices"][0]["message"]
        )


def test_openai_client_parses_strict_tools(served: tuple[Live, ReplayingEngine]) -> None:
    live, engine = served
    engine.answers = [PARIS]
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
    strict["function"]["parameters"] = {**strict["function"]["parameters"], "additionalProperties": False}  # type: ignore[index]
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT) as client:
        parsed = client.chat.completions.parse(model="scripted/model", messages=HELLO["messages"], tools=[strict])  # type: ignore[arg-type, list-item]
    (call,) = parsed.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == {"city": "Paris é😀"}


@pytest.mark.parametrize(
    ("choice", "answer", "calls"),
    [
        ("required", '[{"name": "get_weather", "parameters": {"city": "Oslo"}}, {"name": "now", "parameters": {}}]', 2),
        ({"type": "function", "function": {"name": "get_weather"}}, '{"city": "Oslo"}', 1),
    ],
)
def test_required_calls(served: tuple[Live, ReplayingEngine], choice: Any, answer: str, calls: int) -> None:
    live, engine = served
    engine.answers = [answer]
    body = {**ASK, "tool_choice": choice}
    whole = live.client.post(CHAT, json=body).json()["choices"][0]
    assert whole["finish_reason"] == "tool_calls"
    assert [json.loads(arguments) for _, arguments in calls_of(whole["message"])] == [{"city": "Oslo"}, {}][:calls]
    chunks = events(live.client.post(CHAT, json={**body, "stream": True}))
    assert message_of(chunks)["calls"] == calls_of(whole["message"])
    structured = engine.submitted[-1].params.structured  # type: ignore[union-attr]
    assert structured is not None
    assert structured.kind == "json_schema"
    assert structured.after is None
    assert live.client.post(CHAT, json={**body, "use_beam_search": True, "n": 2}).json()["error"]["param"] == "tool_choice"
