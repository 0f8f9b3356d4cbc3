"""From a generation to an HTTP response: streamed, or whole and abandoned with its client."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from xlaserve import __version__
from xlaserve.server.engine import Engine
from xlaserve.server.generation import Generation
from xlaserve.server.logprobs import LogprobWriter
from xlaserve.server.protocol import GenerationRequest
from xlaserve.server.state import state_of
from xlaserve.server.streaming import EventStream, disconnected, stream_events

Result = TypeVar("Result")


def response_head(prefix: str, kind: str, engine: Engine) -> dict[str, Any]:
    """The fields that open a response and each of its chunks.

    Args:
        prefix: of the id.
        kind: OpenAI's `object`.
        engine: names the model.
    """
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": engine.model_name,
        "system_fingerprint": fingerprint(engine),
    }


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
    echoes: list[str] | None = None,
) -> Response:
    """The response to a submitted text completion. Whatever ends it early, the client's going away included, frees its KV blocks.

    Args:
        request: its body has been read.
        body: says whether to stream.
        generation: submitted, not consumed.
        head: opens the response.
        choices: makes the choices of a whole response once the generation is complete.
        logprobs: makes the log probabilities of a stream's chunks.
        echoes: text to put before the completions of each prompt of a stream.

    Raises:
        ClientDisconnect: nobody waits for the answer any more.
    """
    if body.stream:
        frames = stream_events(generation, body, head, logprobs, echoes=echoes)
        return EventStream(frames, generation.abort, state_of(request).settings.send_timeout)
    await unless_disconnected(request, generation.collect(), generation.abort)
    return Response(orjson.dumps({**head, "choices": choices(), "usage": generation.usage()}), media_type="application/json")


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, Result], abort: Callable[[], None]) -> Result:
    """The result of `work`, which is given up when the client goes away.

    Args:
        request: its body has been read.
        work: collects the answer.
        abort: called once the work has ended, however it ended.

    Raises:
        ClientDisconnect: nobody waits for the answer any more.
    """
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientDisconnect
        return worker.result()
    finally:
        abort()
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)
