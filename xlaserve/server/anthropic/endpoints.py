"""POST /v1/messages and POST /v1/messages/count_tokens."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from xlaserve.server.answers import unless_disconnected
from xlaserve.server.anthropic.conversion import NAMES, to_chat
from xlaserve.server.anthropic.protocol import CountTokens, CreateMessage
from xlaserve.server.anthropic.run import MessageRun
from xlaserve.server.body import read_body
from xlaserve.server.chat_prompt import chat_prompt
from xlaserve.server.chat_run import ChatRun, start_chat
from xlaserve.server.errors import ContextLengthError
from xlaserve.server.protocol import ChatCompletionRequest
from xlaserve.server.state import state_of
from xlaserve.server.streaming import EventStream
from xlaserve.server.translation import in_terms_of


async def create_message(request: Request) -> Response:
    """POST /v1/messages."""
    state = state_of(request)
    engine = state.require_engine()
    body = await read_body(request, CreateMessage, limit=state.settings.max_body_size)
    chat = to_chat(body)
    with in_terms_of(NAMES):
        running, filled = await _start(request, chat)
    run = MessageRun(running, engine.model_name, filled=filled)
    if body.stream:
        return EventStream(run.events(), run.abort, state.settings.send_timeout)
    await unless_disconnected(request, run.generate(), run.abort)
    if run.error is not None:
        raise run.error
    return _json(run.message())


async def count_tokens(request: Request) -> Response:
    """POST /v1/messages/count_tokens: how long the prompt of such a message is."""
    state = state_of(request)
    body = await read_body(request, CountTokens, limit=state.settings.max_body_size)
    state.check_model(body.model)
    with in_terms_of(NAMES):
        prompt = await chat_prompt(to_chat(body), state, bounded=False)
    return _json({"input_tokens": len(prompt.token_ids)})


async def _start(request: Request, chat: ChatCompletionRequest) -> tuple[ChatRun, bool]:
    """The submitted request; and whether it may fill the context, since that has no room for all the tokens that were asked for.

    Clients of this API have to name a number, and name the largest that they know; like Anthropic, the server stops where the context ends.
    """
    try:
        return await start_chat(request, chat), False
    except ContextLengthError as error:
        if error.field != "max_completion_tokens":
            raise
    return await start_chat(request, chat.model_copy(update={"max_completion_tokens": None})), True


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
