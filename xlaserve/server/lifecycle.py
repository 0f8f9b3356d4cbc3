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

from xlaserve.errors import ConfigError, EngineDeadError
from xlaserve.server.app import create_app
from xlaserve.server.engine import Engine
from xlaserve.server.settings import ServerSettings
from xlaserve.server.state import ServerState

log = logging.getLogger(__name__)

BACKLOG = 2048
# After the engine is closed every response ends at once; a client that reads nothing is not waited for longer than this.
LAST_WRITES_SECONDS = 3
# After the engine has died the server answers for so long that probes and clients learn of it, and then ends.
LAST_ANSWERS_SECONDS = 2

Progress = Callable[[str], None]
Start = Callable[[Progress], Awaitable[Engine]]


def bind(settings: ServerSettings) -> socket.socket:
    """Takes the address before anything expensive happens.

    Raises:
        ConfigError: the port is in use, not allowed, or the host is not an address of this machine.
    """
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {reason}. Choose another address with --host or --port."
        ) from error
    # Connections inherit it; with Nagle's algorithm each token could wait 40 ms for the client's acknowledgement of the one before.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def address(listener: socket.socket) -> str:
    """Where a client on this machine reaches the listener, as a URL without a path."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    listener: socket.socket,
    settings: ServerSettings,
    start: Start,
    on_ready: Callable[[Engine], None],
    on_progress: Progress,
) -> int:
    """Serves until told to stop, and returns the process's exit code.

    The first SIGTERM or SIGINT stops accepting, gives running requests `shutdown_timeout` seconds, closes the engine and returns 0; the
    second ends the process at once.

    Args:
        listener: from `bind`.
        settings: of the HTTP side.
        start: makes the engine; gets a function for progress lines. It is cancelled where the server is stopped meanwhile.
        on_ready: called when requests are served.
        on_progress: called for each progress line.

    Raises:
        XlaserveError: the engine could not be started, or has died.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_Life(listener, settings, on_ready, on_progress).run(start))


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
        self._state = ServerState(settings)
        self._stop = asyncio.Event()

    async def run(self, start: Start) -> int:
        config = uvicorn.Config(
            create_app(self._state),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(self._settings.shutdown_timeout) + LAST_WRITES_SECONDS,
        )
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
                    # Nothing is left to be finished, so no client is waited for as if there were.
                    config.timeout_graceful_shutdown = LAST_WRITES_SECONDS
                    await asyncio.wait({stopped, serving}, timeout=LAST_ANSWERS_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._state.stop()
            server.should_exit = True
            if engine is None:
                starting.cancel()
                await asyncio.wait({starting})
            else:
                if engine.errored is None:
                    await self._drain()
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
