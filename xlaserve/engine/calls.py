"""Calls to an engine that have not been answered yet, seen from the user's side. No JAX."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

from xlaserve.engine.messages import Call, Reply
from xlaserve.errors import EngineDeadError, XlaserveError


class OpenCalls:
    """Brings answers to those who wait for them. Belongs to one event loop; nobody waits longer than the engine lives.

    Args:
        send: takes a call to the engine.
    """

    def __init__(self, send: Callable[[Call], None]) -> None:
        self._send = send
        self._ids = count()
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._ended: XlaserveError | None = None

    async def call(self, method: str, arguments: dict[str, Any]) -> Any:
        """Send a call and wait for what comes of it. Who stops waiting does not undo it."""
        if self._ended is not None:
            raise EngineDeadError(str(self._ended))
        call = Call(next(self._ids), method, arguments)
        answer = self._open[call.call_id] = asyncio.get_running_loop().create_future()
        try:
            self._send(call)
            return await answer
        finally:
            del self._open[call.call_id]

    def answer(self, reply: Reply) -> None:
        """An answer has come; perhaps nobody waits for it any more."""
        future = self._open.get(reply.call_id)
        if future is None or future.done():
            return
        if reply.error is None:
            future.set_result(reply.result)
        else:
            future.set_exception(reply.error.error())

    def end(self, error: XlaserveError) -> None:
        """The engine has ended: no answer comes any more."""
        self._ended = self._ended or error
        for future in self._open.values():
            if not future.done():
                future.set_exception(EngineDeadError(str(error)))
