"""An engine in a thread of the user's process."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

from xlaserve.engine.calls import OpenCalls
from xlaserve.engine.connection import OnEvents, OnFailure
from xlaserve.engine.core import EngineCore
from xlaserve.engine.inbox import Inbox
from xlaserve.engine.loop import EngineLoop
from xlaserve.engine.messages import Finish, Reply, TokenEvent
from xlaserve.engine.outputs import EngineStats
from xlaserve.engine.request import Request
from xlaserve.errors import EngineDeadError

log = logging.getLogger(__name__)


class EngineThread:
    """A `Connection`. Requests go to the thread's inbox, events come back to the event loop that requests were made on.

    Args:
        core: the engine, which belongs to the thread from now on.
    """

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._inbox = Inbox()
        self._work = EngineLoop(core, self._inbox)
        self._calls = OpenCalls(self._inbox.put)
        self._num_sent = self._num_sent_tokens = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def listen(self, on_events: OnEvents, on_failure: OnFailure) -> None:
        """Start the thread."""
        self._on_events, self._on_failure = on_events, on_failure
        self._thread.start()

    def add(self, request: Request) -> None:
        """As in `Connection`."""
        self._loop = asyncio.get_running_loop()
        self._num_sent += len(request.sequences)
        self._num_sent_tokens += len(request.prompt_ids)
        self._inbox.put(request)

    def finish(self, message: Finish) -> None:
        """As in `Connection`."""
        self._inbox.put(message)

    async def call(self, method: str, **arguments: Any) -> Any:
        """As in `Connection`."""
        self._loop = asyncio.get_running_loop()
        return await self._calls.call(method, arguments)

    @property
    def num_waiting(self) -> int:
        """As in `Connection`."""
        return self._core.num_waiting + self._num_sent - self._work.num_accepted

    @property
    def num_waiting_tokens(self) -> int:
        """As in `Connection`."""
        return self._core.num_waiting_tokens + self._num_sent_tokens - self._work.num_accepted_tokens

    def stats(self) -> EngineStats:
        """As in `Connection`."""
        return self._core.stats()

    async def close(self) -> None:
        """As in `Connection`."""
        self._inbox.close()
        await asyncio.to_thread(self._thread.join)
        self._calls.end(EngineDeadError("The engine has been closed."))

    def _run(self) -> None:
        try:
            self._work.run(self._tell)
        except BaseException as error:  # the thread's end would be silent otherwise: nothing may be left waiting for it
            log.exception("The engine has stopped after an error")
            dead = EngineDeadError(f"The engine has stopped after an error: {error}")
            dead.__cause__ = error
            self._post(lambda: self._fail(dead))

    def _tell(self, events: list[TokenEvent], replies: list[Reply]) -> None:
        if events or replies:
            self._post(lambda: self._deliver(events, replies))

    def _deliver(self, events: list[TokenEvent], replies: list[Reply]) -> None:
        self._on_events(events)
        for reply in replies:
            self._calls.answer(reply)

    def _fail(self, error: EngineDeadError) -> None:
        self._calls.end(error)
        self._on_failure(error)

    def _post(self, call: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            log.debug("The event loop is closed; outputs are dropped")
