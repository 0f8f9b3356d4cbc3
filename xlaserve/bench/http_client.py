"""HTTP/1.1 for load: one pool of connections, and each piece of an answer handed on when it arrives. Nothing else, so that the client is
never what is measured.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import httptools

from xlaserve.errors import ConfigError


class Sink(Protocol):
    """Takes an answer as it comes."""

    def begin(self, status: int) -> None:
        """The head of an answer has come."""

    def feed(self, data: bytes, at: float) -> None:
        """A piece of its body has come, at `time.perf_counter()` seconds."""


class LostConnection(Exception):
    """The connection ended before the answer did."""


class _Connection(asyncio.Protocol):
    """One connection; it carries one request at a time."""

    def __init__(self) -> None:
        self.open = False
        self.keep = False
        self._requests = 0
        self._bounded = False
        self._unbounded = False
        self._answered = False  # anything at all of the present answer
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._sink: Sink | None = None
        self._done: asyncio.Future[None] | None = None
        self._at = 0.0

    async def exchange(self, request: bytes, sink: Sink) -> None:
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._sink, self.keep, self._answered = sink, False, False
        self._bounded = self._unbounded = False
        self._requests += 1
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._done
        finally:
            self._done = None

    @property
    def stale(self) -> bool:
        """Whether it served an earlier request and has given nothing for this one."""
        return self._requests > 1 and not self._answered

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.open = cast(asyncio.Transport, transport), True

    def data_received(self, data: bytes) -> None:
        self._at = time.perf_counter()
        self._answered = True
        if self._done is None or self._done.done():
            self.close()  # nobody asked: whatever it is, the connection is of no more use
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(LostConnection(f"the server does not speak HTTP/1.1: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._finish(LostConnection(f"the connection ended before the answer did{f': {exc}' if exc else ''}"))

    def eof_received(self) -> bool:
        if self._unbounded:
            self._finish(None)
        return False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._bounded = self._bounded or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        assert self._sink is not None
        self._unbounded = not self._bounded  # then it ends where the connection does
        self._sink.begin(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        assert self._sink is not None
        self._sink.feed(body, self._at)

    def on_message_complete(self) -> None:
        self.keep = self._parser.should_keep_alive()
        self._finish(None)

    def _finish(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            if error is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(error)


class HttpClient:
    """A server, and a pool of connections to it, as many as requests are under way.

    Args:
        url: its address, with or without /v1.
        api_key: sent with every request; None sends none.

    Raises:
        ConfigError: the URL is not one.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ConfigError(f"--base-url must be an address such as http://localhost:8000, got {url!r}.")
        self.url = url
        self.connections = 0
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._head = f"Host: {host}:{self._port}\r\nAccept: */*\r\nUser-Agent: xlaserve-bench\r\n"
        if api_key is not None:
            self._head += f"Authorization: Bearer {api_key}\r\n"
        self._idle: list[_Connection] = []

    async def send(self, method: str, path: str, sink: Sink, body: bytes | None = None) -> None:
        """Send one request and hand its answer to `sink`.

        A connection that was used before and ends without a byte of an answer had been closed by the server meanwhile: then the request
        goes out once more on a new one, as HTTP clients do (RFC 9112, 9.3.1).

        Raises:
            OSError: the server cannot be reached.
            LostConnection: the connection ended before the answer did.
        """
        head = f"{method} {self._base}{path} HTTP/1.1\r\n{self._head}"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        request = head.encode() + b"\r\n" + (body or b"")
        while True:
            connection = await self._connection()
            try:
                await connection.exchange(request, sink)
            except BaseException as error:
                connection.close()
                if isinstance(error, LostConnection) and connection.stale:
                    continue
                raise
            if connection.keep and connection.open:
                self._idle.append(connection)
            else:
                connection.close()
            return

    def close(self) -> None:
        """Close what is idle."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _connection(self) -> _Connection:
        while self._idle:
            if (connection := self._idle.pop()).open:
                return connection
        self.connections += 1
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls)
        return connection
