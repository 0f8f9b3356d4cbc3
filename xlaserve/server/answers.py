"""From a generation to an HTTP response, the same for both completion endpoints: streamed, or whole and abandoned with its client."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from xlaserve import __version__
from xlaserve.server.engine import Engine
from xlaserve.server.generation import Generation
from xlaserve.server.logprobs import LogprobWriter
from xlaserve.server.prompts import Prompt
from xlaserve.server.protocol import GenerationRequest
from xlaserve.server.state import state_of
from xlaserve.server.streaming import EventStream, disconnected, stream_events


def response_head(prefix: str, kind: str, engine: Engine, request_id: str | None = None) -> dict[str, Any]:
    """The fields that open a response and each of its chunks.

    Args:
        prefix: of the id.
        kind: OpenAI's `object`.
        engine: names the model.
        request_id: what the client calls the request, for the id; None makes a name.
    """
    return {
        "id": f"{prefix}-{request_id or uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": engine.model_name,
        "system_fingerprint": fingerprint(engine),
    }


def engine_id(head: dict[str, Any], request_id: str | None) -> str:
    """What the engine calls a request: its id. A client may use a name of its own again, in a retry for example, while the engine still has
    the request that it named so before, so such a name is made longer.
    """
    return head["id"] if request_id is None else f"{head['id']}-{uuid.uuid4().hex}"


def fingerprint(engine: Engine) -> str:
    """Equal for servers that run the same version of xlaserve with the same model set up the same way."""
    setup = f"{engine.model_name}\n{engine.max_model_len}\n{engine.vocab_size}"
    return f"xlaserve-{__version__}-{hashlib.sha256(setup.encode()).hexdigest()[:8]}"


async def answer(
    request: Request,
    body: GenerationRequest,
    generation: Generation,
    head: dict[str, Any],
    choices: Callable[[], list[dict[str, Any]]],
    logprobs: LogprobWriter,
    *,
    prompts: Sequence[Prompt] | None = None,
    extra: Callable[[], dict[str, Any]] = dict,
) -> Response:
    """The response to a submitted generation. Whatever ends it early, the client's going away included, frees its KV blocks.

    Args:
        request: its body has been read.
        body: says whether to stream.
        generation: submitted, not consumed.
        head: opens the response.
        choices: makes the choices of a whole response once the generation is complete.
        logprobs: makes the log probabilities of a stream's chunks.
        prompts: of a text stream, whose completions they may open.
        extra: makes further fields of a whole response.

    Raises:
        ClientDisconnect: nobody waits for the answer any more.
    """
    if body.stream:
        frames = stream_events(generation, body, head, logprobs, prompts)
        return EventStream(frames, generation.abort, state_of(request).settings.send_timeout)
    worker = asyncio.create_task(generation.collect())
    watcher = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientDisconnect
        worker.result()
    finally:
        generation.abort()
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)
    return Response(orjson.dumps({**head, "choices": choices(), "usage": generation.usage(), **extra()}), media_type="application/json")
