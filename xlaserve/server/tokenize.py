"""/tokenize, /detokenize and /tokenizer_info, as vLLM has them: what the model would read, and the text of tokens."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from xlaserve.errors import InvalidRequestError
from xlaserve.server.body import read_body
from xlaserve.server.chat_prompt import chat_prompt
from xlaserve.server.errors import shown
from xlaserve.server.prompts import INLINE_CHARS, encode
from xlaserve.server.protocol import ChatCompletionRequest, TokenIds
from xlaserve.server.state import ServerState, state_of


class TokenizeRequest(BaseModel):
    """POST /tokenize: a `prompt`, or `messages` with the fields of /v1/chat/completions that say how they are rendered.

    `add_special_tokens` is true for a prompt and false for messages, whose template writes them, unless it says otherwise.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(BaseModel):
    """POST /detokenize. Special tokens are part of the text."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    tokens: TokenIds


async def tokenize(request: Request) -> Response:
    """The tokens of a prompt or a conversation, however many."""
    state = state_of(request)
    engine = state.require_engine()
    body = await read_body(request, TokenizeRequest, limit=state.settings.max_body_size)
    state.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("Give either `prompt` or `messages`.", field="prompt")
    ids = await _ids(body, state)
    tokenizer = engine.tokenizer
    answer = {
        "count": len(ids),
        "max_model_len": engine.max_model_len,
        "tokens": ids,
        "token_strs": [tokenizer.token_name(token) for token in ids] if body.return_token_strs else None,
    }
    return Response(orjson.dumps(answer), media_type="application/json")


async def detokenize(request: Request) -> Response:
    """The text of tokens."""
    state = state_of(request)
    engine = state.require_engine()
    body = await read_body(request, DetokenizeRequest, limit=state.settings.max_body_size)
    state.check_model(body.model)
    tokens = body.tokens
    for number, token in enumerate(tokens):
        if not 0 <= token < engine.vocab_size:
            raise InvalidRequestError(
                f"`tokens` must hold token ids between 0 and {engine.vocab_size - 1}, got {shown(token)}.",
                field=f"tokens.{number}",
                value=token,
            )
    if len(tokens) <= INLINE_CHARS:
        text = engine.tokenizer.decode(tokens, skip_special_tokens=False)
    else:
        text = await asyncio.to_thread(engine.tokenizer.decode, tokens, skip_special_tokens=False)
    return Response(orjson.dumps({"prompt": text}), media_type="application/json")


async def tokenizer_info(request: Request) -> Response:
    """GET /tokenizer_info: what harnesses need that render and cut prompts themselves."""
    engine = state_of(request).require_engine()
    tokenizer = engine.tokenizer
    special = {name: tokenizer.named_tokens.get(name) for name in ("bos_token", "eos_token", "pad_token")}
    template = tokenizer.chat_templates.get("default")
    own = {"chat_template": template, "vocab_size": engine.vocab_size, "model_max_length": engine.max_model_len}
    return Response(orjson.dumps({**special, **own}), media_type="application/json")


async def _ids(body: TokenizeRequest, state: ServerState) -> list[int]:
    if body.prompt is not None:
        text = body.prompt
        special = body.add_special_tokens is not False
        return await encode(state.require_engine(), lambda: text, len(text), add_special_tokens=special, field="prompt", bounded=False)
    given = body.model_dump(exclude={"prompt", "return_token_strs"}, exclude_none=True)
    return (await chat_prompt(ChatCompletionRequest.model_validate(given), state, bounded=False)).token_ids
