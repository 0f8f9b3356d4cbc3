"""The endpoints under /v1/responses."""

from __future__ import annotations

from collections.abc import Iterator

import orjson
from starlette.requests import Request
from starlette.responses import Response

from xlaserve.errors import InvalidRequestError
from xlaserve.server.answers import unless_disconnected
from xlaserve.server.body import read_body
from xlaserve.server.chat_prompt import chat_prompt
from xlaserve.server.chat_run import start_chat
from xlaserve.server.errors import shown
from xlaserve.server.logprobs import LogprobWriter
from xlaserve.server.responses.conversion import NAMES, to_chat
from xlaserve.server.responses.head import response_head
from xlaserve.server.responses.items import Item, input_items
from xlaserve.server.responses.page import item_page
from xlaserve.server.responses.protocol import CreateResponse
from xlaserve.server.responses.record import Record, Turns
from xlaserve.server.responses.run import ResponseRun
from xlaserve.server.responses.truncation import truncated
from xlaserve.server.state import ServerState, state_of
from xlaserve.server.streaming import EventStream
from xlaserve.server.translation import in_terms_of


async def create_response(request: Request) -> Response:
    """POST /v1/responses."""
    state = state_of(request)
    engine = state.require_engine()
    body = await read_body(request, CreateResponse, limit=state.settings.max_body_size)
    history, inputs = _conversation(body, state)
    chat = await truncated(body, [*_items(history), *inputs], state)
    head = response_head(body, engine)
    with in_terms_of(NAMES):
        running = await start_chat(request, chat)
    run = ResponseRun(head, running, LogprobWriter(engine.tokenizer, running.params.logprobs, chat=True))
    stored = state.responses
    record = Record(run, history, inputs, stored.settle, keep_events=body.background is True and body.stream is True)
    if body.store is not False:
        stored.add(record)
    if body.background:
        _generate_behind(record, state)
        return _follow(record, -1, state) if body.stream else _json(record.body())

    def end() -> None:
        run.abort()
        stored.settle(record)

    if body.stream:
        return EventStream(record.generate(), end, state.settings.send_timeout)
    await unless_disconnected(request, record.generate_all(), end)
    if run.error is not None:
        stored.remove(record)
        raise run.error
    return _json(record.body())


async def count_input_tokens(request: Request) -> Response:
    """POST /v1/responses/input_tokens: how long the prompt of such a response is."""
    state = state_of(request)
    body = await read_body(request, CreateResponse, limit=state.settings.max_body_size)
    state.check_model(body.model)
    history, inputs = _conversation(body, state)
    with in_terms_of(NAMES):
        prompt = await chat_prompt(to_chat(body, [*_items(history), *inputs]), state, bounded=False)
    return _json(orjson.dumps({"object": "response.input_tokens", "input_tokens": len(prompt.token_ids)}))


async def get_response(request: Request) -> Response:
    """GET /v1/responses/{response_id}: as it stands, or with `stream=true` its events after number `starting_after`."""
    state = state_of(request)
    record = state.responses.get(request.path_params["response_id"])
    if _flag(request, "stream"):
        if record.events is None:
            message = "`stream`: only the events of responses that were made with `background` and `stream` can be read again."
            raise InvalidRequestError(message, field="stream", value=True)
        return _follow(record, _number(request, "starting_after", -1), state)
    return _json(record.body())


async def cancel_response(request: Request) -> Response:
    """POST /v1/responses/{response_id}/cancel: the response as it stands then; one that has ended stays as it is."""
    record = state_of(request).responses.get(request.path_params["response_id"])
    if not record.background:
        raise InvalidRequestError("Only responses made with `background` can be cancelled; for others, close the connection.")
    await record.cancel()
    return _json(record.body())


async def delete_response(request: Request) -> Response:
    """DELETE /v1/responses/{response_id}; one that is being generated in the background is cancelled."""
    responses = state_of(request).responses
    record = responses.get(request.path_params["response_id"])
    await record.cancel()
    responses.remove(record)
    return _json(orjson.dumps({"id": record.id, "object": "response", "deleted": True}))


async def list_input_items(request: Request) -> Response:
    """GET /v1/responses/{response_id}/input_items: what the model read, the latest first unless `order=asc`."""
    record = state_of(request).responses.get(request.path_params["response_id"])
    query = request.query_params
    page = item_page(record.items(), limit=_number(request, "limit", 20), order=query.get("order", "desc"), after=query.get("after"))
    return _json(orjson.dumps(page))


def _conversation(body: CreateResponse, state: ServerState) -> tuple[Turns, list[Item]]:
    history = () if body.previous_response_id is None else state.responses.conversation(body.previous_response_id)
    return history, input_items(body.input, state.responses.item)


def _items(turns: Turns) -> Iterator[Item]:
    return (item for turn in turns for item in orjson.loads(turn))


def _generate_behind(record: Record, state: ServerState) -> None:
    # Counted as a request in flight, so that the server waits for it when it is told to stop.
    state.enter(load=True)

    def ended(_: object) -> None:
        state.responses.settle(record)
        state.leave(load=True)

    record.start().add_done_callback(ended)


def _follow(record: Record, after: int, state: ServerState) -> EventStream:
    # Whoever reads along may go away: the response goes on.
    return EventStream(record.follow(after), lambda: None, state.settings.send_timeout)


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false")
    if text not in ("true", "false"):
        raise InvalidRequestError(f"`{name}` must be true or false, got {shown(text)}.", field=name, value=text)
    return text == "true"


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 9:
        raise InvalidRequestError(f"`{name}` must be a whole number, got {shown(text)}.", field=name, value=text)
    return int(text)
