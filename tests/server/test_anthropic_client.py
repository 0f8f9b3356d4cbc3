"""/v1/messages through the official `anthropic` package: whole, streamed, counted, refused, abandoned."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types import Message, MessageParam

from tests.server.live import TIMEOUT, Live, live_server
from tests.server.scripted_engine import ScriptedEngine
from tests.server.strict import MESSAGE_EVENTS, check, sent
from tests.server.test_message_events import put_together
from xlaserve.errors import OverloadedError

MODEL = "scripted/model"
EXTRA = {"top_k": 3, "temperature": 0.5}  # not every version of the package has arguments for them
HI: list[MessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(server: Live) -> Generator[Anthropic]:
    with Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=TIMEOUT) as client:
        yield client


def test_whole(client: Anthropic, engine: ScriptedEngine) -> None:
    message = client.messages.create(model=MODEL, messages=HI, system="Be brief.", max_tokens=4, stop_sequences=["x"], extra_body=EXTRA)
    check(Message, message.model_dump(exclude_unset=True))
    assert [block.text for block in message.content if block.type == "text"] == ["abcd"]
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("max_tokens", 36, 4)
    (stream,) = engine.submitted
    assert bytes(stream.prompt_token_ids).decode() == "<system>Be brief.<user>hi<assistant>"
    assert (stream.params.top_k, stream.params.max_tokens, stream.params.stop) == (3, 4, ("x",))


def test_goes_on_in_the_middle_of_a_message(client: Anthropic, engine: ScriptedEngine) -> None:
    client.messages.create(model=MODEL, messages=[*HI, {"role": "assistant", "content": "It is"}], max_tokens=2)
    assert bytes(engine.submitted[0].prompt_token_ids).decode() == "<user>hi<assistant>It is"


@pytest.mark.parametrize("fields", [{"max_tokens": 5}, {"max_tokens": 5, "system": "Be brief."}, {"max_tokens": 100_000}])
def test_stream_equals_whole(shared: Live, fields: dict[str, Any]) -> None:
    body = {"messages": HI, **fields}
    whole = shared.client.post("/v1/messages", json=body).json()
    events = sent(shared.client.post("/v1/messages", json={**body, "stream": True}))
    for name, data in events:
        if name != "ping":
            check(MESSAGE_EVENTS[name], data)
    assert {**put_together(events), "id": None} == {**whole, "id": None}


def test_stream_helper(client: Anthropic) -> None:
    with client.messages.stream(model=MODEL, messages=HI, max_tokens=4) as stream:
        assert "".join(stream.text_stream) == "abcd"
        assert stream.get_final_message().stop_reason == "max_tokens"


def test_more_tokens_than_there_is_room_for(client: Anthropic, engine: ScriptedEngine) -> None:
    message = client.messages.create(model=MODEL, messages=HI, max_tokens=100_000)
    assert message.stop_reason == "model_context_window_exceeded"
    assert message.usage.output_tokens == engine.max_model_len - message.usage.input_tokens


def test_count_tokens(client: Anthropic, engine: ScriptedEngine) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=HI, system="Be brief.")
    assert counted.input_tokens == len("<system>Be brief.<user>hi<assistant>")
    assert not engine.submitted


def test_beta_path(client: Anthropic) -> None:
    message = client.beta.messages.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=2, betas=["some-beta"])
    assert message.stop_reason == "max_tokens"


def test_errors(client: Anthropic, engine: ScriptedEngine) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(model=MODEL, messages=HI, max_tokens=4, extra_body={"temperature": 9})
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="claude", messages=HI, max_tokens=4)
    assert unknown.value.type == "not_found_error"
    engine.end_with, engine.fail_after = "error", 2
    with pytest.raises(anthropic.InternalServerError):
        client.messages.create(model=MODEL, messages=HI, max_tokens=4)
    with (
        pytest.raises(anthropic.APIStatusError, match="engine failed"),
        client.messages.stream(model=MODEL, messages=HI, max_tokens=4) as stream,
    ):
        list(stream)
    engine.refusal = OverloadedError("the queue is full")
    with pytest.raises(anthropic.APIStatusError) as overloaded:
        client.messages.create(model=MODEL, messages=HI, max_tokens=4)
    assert (overloaded.value.status_code, overloaded.value.type) == (529, "overloaded_error")
    assert overloaded.value.response.headers["retry-after"] == "1"


def test_too_large_and_not_ready() -> None:
    with live_server(None, max_body_size=100) as live, Anthropic(base_url=live.url, api_key="none", max_retries=0) as client:
        with pytest.raises(anthropic.APIStatusError) as loading:
            client.messages.create(model=MODEL, messages=HI, max_tokens=4)
        assert (loading.value.status_code, loading.value.type) == (503, "api_error")
    with live_server(ScriptedEngine(), max_body_size=100) as live:
        response = live.client.post("/v1/messages", json={"messages": [{"role": "user", "content": "x" * 100}], "max_tokens": 4})
        assert (response.status_code, response.json()["error"]["type"]) == (413, "request_too_large")


def test_closing_a_stream_aborts(client: Anthropic, engine: ScriptedEngine) -> None:
    engine.pause_after = 3
    with client.messages.create(model=MODEL, messages=HI, max_tokens=50, stream=True) as stream:
        next(iter(stream))
        assert engine.paused.wait(TIMEOUT)
    assert engine.aborted.wait(TIMEOUT)
    assert not engine.running


def test_a_client_timeout_aborts(client: Anthropic, engine: ScriptedEngine) -> None:
    engine.pause_after = 3
    with pytest.raises(anthropic.APITimeoutError):
        client.with_options(timeout=0.2).messages.create(model=MODEL, messages=HI, max_tokens=50)
    assert engine.aborted.wait(TIMEOUT)
