"""The server's life: take the port, listen, start the engine, serve, and stop in order when told to or when the engine has died."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Generator

import uvicorn

from xlaserve.errors import EngineDeadError
from xlaserve.server.app import create_app
from xlaserve.server.engine import Engine
from xlaserve.server.http_protocol import BoundedHeads
from xlaserve.server.listener import release, tls_context
from xlaserve.server.settings import ServerSettings
from xlaserve.server.state import ServerState

log = logging.getLogger(__name__)

# After the engine is closed every response ends at once; a client that reads nothing is not waited for longer than this.
LAST_WRITES_SECONDS = 3
# After the engine has died the server answers for so long that probes and clients learn of it, and then ends.
LAST_ANSWERS_SECONDS = 2

Progress = Callable[[str], None]
Start = Callable[[Progress], Awaitable[Engine]]


def serve(
    listener: socket.socket,
    settings: ServerSettings,
    start: Start,
    on_ready: Callable[[Engine], None],
    on_progress: Progress,
) -> int:
    """Serves until told to stop, and returns the process's exit code.

    After the first SIGTERM or SIGINT new requests get a 503, `/ready` too, and running ones `shutdown_timeout` seconds to end; then the
    engine is closed, and so is the listener. The second signal ends the process at once.

    Args:
        listener: from `listener.bind`; closed at the end.
        settings: of the HTTP side.
        start: makes the engine; gets a function for progress lines. It is cancelled where the server is stopped meanwhile.
        on_ready: called when requests are served.
        on_progress: called for each progress line.

    Raises:
        ConfigError: a file that TLS needs cannot be used, or traces cannot be made.
        XlaserveError: the engine could not be started, or has died.
    """
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_Life(listener, settings, on_ready, on_progress).run(start))
    finally:
        release(listener, settings)


class _QuietServer(uvicorn.Server):
    """uvicorn without its own signal handlers: stopping is decided here, engine first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class _Life:
    def __init__(
        self, listener: socket.socket, settings: ServerSettings, on_ready: Callable[[Engine], None], on_progress: Progress
    ) -> None:
        self._listener = listener
        self._settings = settings
        self._on_ready = on_ready
        self._on_progress = on_progress
        self._tls = tls_context(settings.tls) if settings.tls is not None else None
        self._state = ServerState(settings)
        self._stop = asyncio.Event()

    async def run(self, start: Start) -> int:
        config = uvicorn.Config(
            create_app(self._state),
            http=BoundedHeads,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            root_path=self._settings.root_path,
            timeout_graceful_shutdown=LAST_WRITES_SECONDS,
        )
        config.load()
        config.ssl = self._tls
        server = _QuietServer(config)
        self._handle_signals()
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        stopped = asyncio.create_task(self._stop.wait())
        starting = asyncio.ensure_future(start(self._report))
        failed: asyncio.Task[None] | None = None
        engine: Engine | None = None
        try:
            await asyncio.wait({starting, stopped, serving}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                engine = starting.result()
                failed = asyncio.create_task(engine.wait_failed())
                self._state.attach(engine)
                self._on_ready(engine)
                await asyncio.wait({stopped, serving, failed}, return_when=asyncio.FIRST_COMPLETED)
                if failed.done():
                    await asyncio.wait({stopped, serving}, timeout=LAST_ANSWERS_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Who still asks meanwhile is told to go elsewhere, which a closed port cannot do.
            self._state.stop()
            if engine is not None and engine.errored is None:
                await self._drain()
            server.should_exit = True
            if engine is None:
                starting.cancel()
                await asyncio.wait({starting})
            else:
                await engine.close()
            await serving
            for task in (stopped, failed):
                if task is not None:
                    task.cancel()
        if engine is not None and engine.errored is not None:
            raise EngineDeadError(str(engine.errored))
        return 0

    async def _drain(self) -> None:
        if self._settings.shutdown_timeout > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.shutdown_timeout):
                    await self._state.idle.wait()

    def _report(self, line: str) -> None:
        self._state.report(line)
        self._on_progress(line)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows' loops have no signal handlers
                loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set():
            os._exit(128 + number)
        self._stop.set()
        with contextlib.suppress(OSError):  # whoever read our standard error may have gone
            print("xlaserve: stopping; send the signal again to stop at once", file=sys.stderr, flush=True)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
