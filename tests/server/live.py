"""A real uvicorn on a free port of this machine, on a thread of the test process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from xlaserve.server.app import create_app
from xlaserve.server.engine import Engine
from xlaserve.server.http_protocol import BoundedHeads
from xlaserve.server.listener import address, bind
from xlaserve.server.settings import ServerSettings
from xlaserve.server.state import ServerState

TIMEOUT = 30.0


class _Announcing(uvicorn.Server):
    """Tells when it accepts connections."""

    def __init__(self, config: uvicorn.Config, accepting: threading.Event) -> None:
        super().__init__(config)
        self._accepting = accepting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._accepting.set()


class Live:
    """A running server; `client` is an httpx client on its address."""

    def __init__(self, url: str, state: ServerState, client: httpx.Client) -> None:
        self.url = url
        self.state = state
        self.client = client
        self.port = int(url.rpartition(":")[2])


@contextmanager
def live_server(
    engine: Engine | None, *, state: ServerState | None = None, send_buffer: int | None = None, **settings: Any
) -> Generator[Live]:
    """Serves until the block ends. Without an engine the server stays in its loading phase; a given state has its own settings.

    `send_buffer`: bytes that the system keeps for each client, which are megabytes otherwise.
    """
    state = state or ServerState(ServerSettings(port=0, **settings))
    options = state.settings
    listener = bind(options)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    if engine is not None:
        state.attach(engine)
    config = uvicorn.Config(
        create_app(state),
        http=BoundedHeads,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
        root_path=options.root_path,
    )
    accepting = threading.Event()
    server = _Announcing(config, accepting)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        assert accepting.wait(TIMEOUT)
        with httpx.Client(base_url=address(listener), timeout=TIMEOUT) as client:
            yield Live(address(listener), state, client)
    finally:
        server.should_exit = True
        thread.join(TIMEOUT)
        listener.close()
    assert not thread.is_alive()
