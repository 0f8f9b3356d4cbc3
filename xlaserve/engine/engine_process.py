"""An engine in a process of its own, seen from the server's process, which never imports JAX.

The two are tied: where one ends, however it ends, the other sees their socket close and ends too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any, cast

from xlaserve.engine.calls import OpenCalls
from xlaserve.engine.config import EngineConfig
from xlaserve.engine.connection import OnEvents, OnFailure
from xlaserve.engine.engine_spawn import Spawned, spawn_engine
from xlaserve.engine.framing import FrameReader, FrameWriter
from xlaserve.engine.front_end import FrontEnd
from xlaserve.engine.log_format import current_format
from xlaserve.engine.messages import Add, EngineInfo, Failed, Finish, FromEngine, Progress, Ready, Reply, Start, Step, ToEngine
from xlaserve.engine.outputs import EngineStats
from xlaserve.engine.request import Request
from xlaserve.errors import EngineDeadError, XlaserveError
from xlaserve.models.checkpoint import open_checkpoint

log = logging.getLogger(__name__)

EXIT_SECONDS = 3
"""How long an engine process that has been told to end may take before it is killed."""


async def start_engine(config: EngineConfig, progress: Callable[[str], None], spawned: Spawned | None = None) -> FrontEnd:
    """Start an engine process and wait until it serves. Cancelling ends the process.

    Args:
        config: what it is to be.
        progress: told one line at a time what happens while it gets ready.
        spawned: its process, where that has been started already.

    Raises:
        XlaserveError: it could not start; of the type that it would have in this process.
    """
    engine = EngineProcess(progress)
    try:
        await engine.start(config, spawned or spawn_engine())
        info = await engine.ready
        tokenizer = await asyncio.to_thread(lambda: open_checkpoint(info.checkpoint, info.load_format).tokenizer())
    except BaseException:
        await engine.close()
        raise
    return FrontEnd(engine, info, tokenizer, config)


class EngineProcess(asyncio.Protocol):
    """A `Connection`. Everything happens on the event loop that it was made on, which must be the main thread's.

    Args:
        progress: told what the engine does while it gets ready.

    Attributes:
        ready: what there is to know of the engine, once it serves; or why it does not.
    """

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.ready: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()
        self._progress = progress
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._writer = FrameWriter()
        self._reader = FrameReader[FromEngine](FromEngine)
        self._on_events: OnEvents | None = None
        self._on_failure: OnFailure | None = None
        self._last = Step([], 0, 0, 0, 0, None)
        self._stats = EngineStats()
        self._calls = OpenCalls(self._send)
        self._num_sent = self._num_sent_tokens = 0
        self._closing = False
        self._failure: XlaserveError | None = None
        self._ending: asyncio.Task[None] | None = None

    async def start(self, config: EngineConfig, spawned: Spawned) -> None:
        """Tell the process what to be."""
        self._process = spawned.process
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=spawned.end)
        level = logging.getLogger("xlaserve").getEffectiveLevel()
        self._send(Start(config, level, os.environ.get("PYTHONPATH"), current_format()))

    def listen(self, on_events: OnEvents, on_failure: OnFailure) -> None:
        """As in `Connection`."""
        self._on_events, self._on_failure = on_events, on_failure
        if self._failure is not None:
            on_failure(self._failure)

    def add(self, request: Request) -> None:
        """As in `Connection`."""
        self._send(Add.of(request))
        self._num_sent += len(request.sequences)
        self._num_sent_tokens += len(request.prompt_ids)

    def finish(self, message: Finish) -> None:
        """As in `Connection`."""
        self._send(message)

    async def call(self, method: str, **arguments: Any) -> Any:
        """As in `Connection`."""
        return await self._calls.call(method, arguments)

    @property
    def num_waiting(self) -> int:
        """As in `Connection`."""
        return self._last.num_waiting + self._num_sent - self._last.num_accepted

    @property
    def num_waiting_tokens(self) -> int:
        """As in `Connection`."""
        return self._last.num_waiting_tokens + self._num_sent_tokens - self._last.num_accepted_tokens

    def stats(self) -> EngineStats:
        """As in `Connection`."""
        return self._stats

    async def close(self) -> None:
        """As in `Connection`."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()
        await self._reap()
        self._calls.end(EngineDeadError("The engine has been closed."))

    # What follows is called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its type

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._receive(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self._closing:
            self._ending = asyncio.create_task(self._end())

    def _receive(self, message: FromEngine) -> None:
        match message:
            case Step():
                self._last = message
                self._stats = message.stats or self._stats
                if message.events:
                    assert self._on_events is not None
                    self._on_events(message.events)
            case Reply():
                self._calls.answer(message)
            case Progress():
                self._progress(message.line)
            case Ready():
                self.ready.set_result(message.info)
            case Failed():
                self._failure = message.error()

    def _send(self, message: ToEngine) -> None:
        if self._transport is not None:
            self._transport.write(self._writer.frame(message))

    async def _end(self) -> None:
        """The engine has gone although nobody told it to."""
        code = await self._reap()
        assert self._process is not None
        if self._failure is None:
            self._failure = EngineDeadError(f"The engine process (pid {self._process.pid}) {_how_it_ended(code)}.")
        self._stats = EngineStats(num_blocks=self._stats.num_blocks, num_free_blocks=self._stats.num_blocks)
        self._calls.end(self._failure)
        if not self.ready.done():
            self.ready.set_exception(self._failure)
            return
        log.error("%s The server cannot go on without it.", self._failure)
        if self._on_failure is not None:
            self._on_failure(self._failure)

    async def _reap(self) -> int:
        process = self._process
        if process is None:
            return 0
        try:
            return await asyncio.to_thread(process.wait, EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("The engine process (pid %d) does not end; it is killed", process.pid)
            process.kill()
            return await asyncio.to_thread(process.wait)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"has exited with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (", as happens where memory runs out" if -code == signal.SIGKILL else "")
