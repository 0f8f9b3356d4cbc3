"""/v1/responses through the official `openai` package: whole, streamed, in the background, continued, cancelled, forgotten."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response, ResponseItem
from openai.types.responses.input_token_count_response import InputTokenCountResponse
from pydantic import TypeAdapter

from tests.server.live import TIMEOUT, Live, live_server
from tests.server.scripted_engine import ScriptedEngine
from tests.server.strict import RESPONSE_EVENTS, check, sent
from tests.server.test_bad_input import assert_error
from xlaserve.errors import OverloadedError

MODEL = "scripted/model"
PATH = "/v1/responses"


@pytest.fixture
def client(server: Live) -> Generator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT) as client:
        yield client


def prompts(engine: ScriptedEngine) -> list[str]:
    return [bytes(stream.prompt_token_ids).decode() for stream in engine.submitted]


def test_whole(client: OpenAI, engine: ScriptedEngine) -> None:
    answer = client.responses.create(model=MODEL, input="hi", instructions="Be brief.", max_output_tokens=4, extra_body={"top_k": 3})
    assert answer.output_text == "abcd"
    assert answer.status == "incomplete"
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (36, 4)
    assert prompts(engine) == ["<system>Be brief.<user>hi<assistant>"]
    assert (engine.submitted[0].params.top_k, engine.submitted[0].params.max_tokens) == (3, 4)
    check(Response, answer.model_dump(by_alias=True))


def test_completed(client: OpenAI, engine: ScriptedEngine) -> None:
    engine.end_with, engine.fail_after = "stop", 2
    answer = client.responses.create(model=MODEL, input="hi", max_output_tokens=3)
    assert (answer.status, answer.output_text, answer.incomplete_details) == ("completed", "abc", None)
    assert answer.completed_at is not None


@pytest.mark.parametrize(
    "fields", [{}, {"max_output_tokens": 5}, {"top_logprobs": 2, "max_output_tokens": 4}, {"metadata": {"a": "b"}, "store": False}]
)
def test_stream_equals_whole(shared: Live, fields: dict[str, Any]) -> None:
    body = {"input": "hi", **fields}
    whole = shared.client.post(PATH, json=body).json()
    events = sent(shared.client.post(PATH, json={**body, "stream": True}))
    for number, (name, data) in enumerate(events):
        check(RESPONSE_EVENTS[name], data)
        assert data["sequence_number"] == number
    last = events[-1][1]["response"]
    ids = {"id": None, "created_at": None}
    assert [{**item, "id": None} for item in last["output"]] == [{**item, "id": None} for item in whole["output"]]
    assert {**last, **ids, "output": None} == {**whole, **ids, "output": None}
    deltas = [data for name, data in events if name == "response.output_text.delta"]
    part = whole["output"][0]["content"][0]
    assert "".join(delta["delta"] for delta in deltas) == part["text"]
    assert [found for delta in deltas for found in delta["logprobs"]] == part["logprobs"]
    assert len(part["logprobs"]) == (4 if "top_logprobs" in fields else 0)


def test_stream_helper(client: OpenAI, engine: ScriptedEngine) -> None:
    engine.end_with, engine.fail_after = "stop", 2
    with client.responses.stream(model=MODEL, input="hi", max_output_tokens=3) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert final.output_text == "abc"
    assert client.responses.retrieve(final.id).output_text == "abc"


def test_a_conversation_goes_on(client: OpenAI, engine: ScriptedEngine) -> None:
    first = client.responses.create(model=MODEL, input="one", instructions="Be brief.", max_output_tokens=3)
    with client.responses.create(model=MODEL, input="two", previous_response_id=first.id, max_output_tokens=2, stream=True) as stream:
        second = list(stream)[-1]
    assert second.type == "response.incomplete"
    third = client.responses.create(model=MODEL, input="three", previous_response_id=second.response.id, max_output_tokens=1)
    assert third.previous_response_id == second.response.id
    assert prompts(engine)[1:] == [
        "<user>one<assistant>abc<user>two<assistant>",
        "<user>one<assistant>abc<user>two<assistant>ab<user>three<assistant>",
    ]


def test_input_items_page_by_page(client: OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="one", max_output_tokens=3)
    second = client.responses.create(model=MODEL, input="two", previous_response_id=first.id, max_output_tokens=2)
    items = list(client.responses.input_items.list(second.id, limit=1, order="asc"))
    assert [item.content[0].text for item in items] == ["one", "abc", "two"]  # type: ignore[union-attr, index]
    assert [item.id for item in client.responses.input_items.list(second.id)] == [item.id for item in reversed(items)]
    for item in items:
        TypeAdapter[Any](ResponseItem).validate_python(item.model_dump(), strict=True)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up", "after=nothing"])
def test_input_items_of_no_page(shared: Live, query: str) -> None:
    made = shared.client.post(PATH, json={"input": "hi", "max_output_tokens": 1}).json()
    error = assert_error(400, shared.client.get(f"{PATH}/{made['id']}/input_items?{query}"))
    assert error["param"] == query.partition("=")[0]


def test_deleted(client: OpenAI, server: Live) -> None:
    made = client.responses.create(model=MODEL, input="hi", max_output_tokens=2)
    assert client.responses.retrieve(made.id).to_dict() == made.to_dict()
    assert server.client.delete(f"{PATH}/{made.id}").json() == {"id": made.id, "object": "response", "deleted": True}
    with pytest.raises(openai.NotFoundError) as gone:
        client.responses.retrieve(made.id)
    assert gone.value.code == "response_not_found"
    with pytest.raises(openai.BadRequestError) as lost:
        client.responses.create(model=MODEL, input="more", previous_response_id=made.id)
    assert lost.value.code == "previous_response_not_found"


def test_not_stored(client: OpenAI) -> None:
    made = client.responses.create(model=MODEL, input="hi", max_output_tokens=2, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_the_store_is_bounded() -> None:
    with live_server(ScriptedEngine(), max_stored_responses=1) as live:
        first, second = (live.client.post(PATH, json={"input": "hi", "max_output_tokens": 1}).json()["id"] for _ in range(2))
        assert live.client.get(f"{PATH}/{first}").status_code == 404
        assert live.client.get(f"{PATH}/{second}").status_code == 200


def test_in_the_background(client: OpenAI, engine: ScriptedEngine) -> None:
    engine.pause_after = 3
    made = client.responses.create(model=MODEL, input="hi", max_output_tokens=5, background=True)
    assert made.status == "queued"
    assert engine.paused.wait(TIMEOUT)
    running = check(Response, client.responses.retrieve(made.id).model_dump(by_alias=True))
    assert (running.status, running.output_text, running.usage) == ("in_progress", "abc", None)
    cancelled = client.responses.cancel(made.id)
    assert (cancelled.status, cancelled.output_text) == ("cancelled", "abc")
    assert not engine.running
    assert client.responses.cancel(made.id).to_dict() == cancelled.to_dict()
    assert client.responses.retrieve(made.id).to_dict() == cancelled.to_dict()


def test_a_stream_is_taken_up_again(client: OpenAI, server: Live, engine: ScriptedEngine) -> None:
    engine.pause_after = 3
    stream = client.responses.create(model=MODEL, input="hi", max_output_tokens=5, background=True, stream=True)
    seen = [next(stream) for _ in range(4)]
    stream.close()
    assert [event.type for event in seen[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert engine.paused.wait(TIMEOUT)
    assert engine.running
    engine.let_go()
    made = seen[0].response.id  # type: ignore[union-attr]
    with client.responses.retrieve(made, stream=True, starting_after=3) as rest:
        seen += list(rest)
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == "abcde"
    again = sent(server.client.get(f"{PATH}/{made}?stream=true"))
    assert [name for name, _ in again] == [event.type for event in seen]
    assert again[-1][1]["response"] == server.client.get(f"{PATH}/{made}").json()


def test_deleting_what_runs_ends_it(client: OpenAI, engine: ScriptedEngine) -> None:
    engine.pause_after = 1
    made = client.responses.create(model=MODEL, input="hi", background=True)
    assert engine.paused.wait(TIMEOUT)
    client.responses.delete(made.id)
    assert not engine.running


@pytest.mark.parametrize(("fields", "query"), [({}, "stream=true"), ({"background": True}, "stream=true"), ({}, "stream=1")])
def test_no_stream_to_take_up(shared: Live, fields: dict[str, Any], query: str) -> None:
    made = shared.client.post(PATH, json={"input": "hi", "max_output_tokens": 1, **fields}).json()
    assert assert_error(400, shared.client.get(f"{PATH}/{made['id']}?{query}"))["param"] == "stream"


def test_only_what_runs_in_the_background_is_cancelled(shared: Live) -> None:
    made = shared.client.post(PATH, json={"input": "hi", "max_output_tokens": 1}).json()
    assert_error(400, shared.client.post(f"{PATH}/{made['id']}/cancel"))


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")])
def test_no_such_response(shared: Live, method: str, path: str) -> None:
    error = assert_error(404, shared.client.request(method, f"{PATH}/resp_nothing{path}"))
    assert error["param"] == "response_id"


def test_closing_a_stream_aborts(client: OpenAI, engine: ScriptedEngine) -> None:
    engine.pause_after = 3
    stream = client.responses.create(model=MODEL, input="hi", stream=True)
    made = next(stream).response  # type: ignore[union-attr]
    assert engine.paused.wait(TIMEOUT)
    stream.close()
    assert engine.aborted.wait(TIMEOUT)
    assert client.responses.retrieve(made.id).status == "cancelled"


def test_a_client_timeout_aborts(client: OpenAI, engine: ScriptedEngine) -> None:
    engine.pause_after = 3
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).responses.create(model=MODEL, input="hi")
    assert engine.aborted.wait(TIMEOUT)


def test_errors(client: OpenAI, engine: ScriptedEngine) -> None:
    engine.end_with, engine.fail_after = "error", 2
    with pytest.raises(openai.InternalServerError) as failed:
        client.responses.create(model=MODEL, input="hi")
    assert failed.value.code == "generation_failed"
    with client.responses.create(model=MODEL, input="hi", stream=True) as stream:
        assert [event.type for event in stream][-2:] == ["error", "response.failed"]
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="gpt-9", input="hi")
    engine.refusal = OverloadedError("the queue is full")
    with pytest.raises(openai.InternalServerError) as overloaded:
        client.responses.create(model=MODEL, input="hi")
    assert overloaded.value.status_code == 503
    assert len(engine.running) == 0


def test_input_tokens(client: OpenAI, engine: ScriptedEngine) -> None:
    counted = client.responses.input_tokens.count(model=MODEL, input="hi", instructions="Be brief.")
    check(InputTokenCountResponse, counted.model_dump())
    assert counted.input_tokens == len("<system>Be brief.<user>hi<assistant>")
    assert not engine.submitted


def test_truncation_leaves_out_the_oldest_turns(client: OpenAI, engine: ScriptedEngine) -> None:
    turns: list[Any] = [{"role": "developer", "content": "D"}]
    for number in range(8):
        turns += [{"role": "user", "content": f"{number}" * 10}, {"role": "assistant", "content": "yes"}]
    turns.append({"role": "user", "content": "end"})
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.create(model=MODEL, input=turns, max_output_tokens=4)
    assert long.value.code == "context_length_exceeded"
    made = client.responses.create(model=MODEL, input=turns, max_output_tokens=4, truncation="auto")
    assert (made.truncation, made.output_text) == ("auto", "abcd")
    (prompt,) = prompts(engine)
    assert (
        prompt == "<system>D<user>5555555555<assistant>yes<user>6666666666<assistant>yes<user>7777777777<assistant>yes<user>end<assistant>"
    )
    client.responses.create(model=MODEL, input="short", truncation="auto", max_output_tokens=1)
    assert prompts(engine)[1] == "<user>short<assistant>"
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model=MODEL, input="x" * 200, truncation="auto")


def test_truncation_keeps_what_fits(client: OpenAI, engine: ScriptedEngine) -> None:
    for length in range(1, 12):
        turns: list[Any] = [{"role": "user", "content": "a" * length} for _ in range(9)]
        client.responses.create(model=MODEL, input=turns, max_output_tokens=1, truncation="auto")
        used = len(engine.submitted[-1].prompt_token_ids)
        assert used < engine.max_model_len
        assert used + len("<user>") + length > engine.max_model_len - 1 or prompts(engine)[-1].count("<user>") == 9
