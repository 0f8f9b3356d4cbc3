"""What answers of all endpoints that generate have in common: how they open, and that their work ends with their client."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from xlaserve import __version__
from xlaserve.server.engine import Engine
from xlaserve.server.streaming import disconnected

Result = TypeVar("Result")


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
