"""The load client's HTTP: connections are used again, given up and replaced; what a server does wrong is an error."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

import pytest

from xlaserve.bench.http_client import HttpClient, LostConnection
from xlaserve.errors import ConfigError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Script = Callable[[int, int], bytes | None]
"""The answer to a connection's request, by the numbers of both from 0; None hangs up."""


class Collected:
    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.pieces = 0

    def begin(self, status: int) -> None:
        self.status = status

    def feed(self, data: bytes, at: float) -> None:
        self.body += data
        self.pieces += 1


class Server:
    def __init__(self) -> None:
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.connections = 0


def with_server(script: Script, work: Callable[[HttpClient], Awaitable[None]], *, hang_up_idle: bool = False) -> Server:
    """Serve `script` while `work` runs."""
    seen = Server()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, seen.connections = seen.connections, seen.connections + 1
        request = 0
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"Content-Length: (\d+)", head)
                seen.heads.append(head)
                seen.bodies.append(await reader.readexactly(int(length[1])) if length else b"")
                answer = script(number, request)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
                request += 1
                if b"Connection: close" in answer or hang_up_idle:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = HttpClient(f"http://127.0.0.1:{port}/v1", "sesame")
        try:
            await work(client)
        finally:
            client.close()
            server.close()
            await server.wait_closed()

    asyncio.run(main())
    return seen


async def get(client: HttpClient) -> Collected:
    sink = Collected()
    await client.send("GET", "/v1/models", sink)
    return sink


def test_one_connection_serves_one_request_after_the_other() -> None:
    async def work(client: HttpClient) -> None:
        for _ in range(3):
            assert (await get(client)).body == b"ok"
        sink = Collected()
        await client.send("POST", "/v1/completions", sink, b"{}")
        assert sink.status == 200
        assert client.connections == 1

    seen = with_server(lambda _connection, _request: OK, work)
    assert seen.connections == 1
    assert seen.heads[0].startswith("GET /v1/models HTTP/1.1\r\n")
    assert "Authorization: Bearer sesame" in seen.heads[0]
    assert seen.bodies[3] == b"{}"


def test_as_many_connections_as_requests_under_way() -> None:
    async def work(client: HttpClient) -> None:
        await asyncio.gather(*(get(client) for _ in range(5)))
        assert client.connections == 5
        await asyncio.gather(*(get(client) for _ in range(5)))
        assert client.connections == 5

    with_server(lambda _connection, _request: OK, work)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc",
    ],
)
def test_bodies_of_every_kind(answer: bytes) -> None:
    async def work(client: HttpClient) -> None:
        for _ in range(2):
            assert (await get(client)).body == b"abc"

    seen = with_server(lambda _connection, _request: answer, work)
    assert seen.connections == (2 if b"close" in answer else 1)


def test_a_connection_that_the_server_gave_up_meanwhile_is_replaced() -> None:
    async def work(client: HttpClient) -> None:
        for _ in range(3):
            assert (await get(client)).body == b"ok"
        assert client.connections == 3

    with_server(lambda _connection, _request: OK, work, hang_up_idle=True)


def test_a_used_connection_that_gives_nothing_is_tried_once_more_on_a_new_one() -> None:
    async def work(client: HttpClient) -> None:
        assert (await get(client)).body == b"ok"
        assert (await get(client)).body == b"ok"

    assert with_server(lambda _connection, request: OK if request == 0 else None, work).connections == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "ended before"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nok", "ended before"),
        (b"what?\r\n", "HTTP/1.1"),
    ],
)
def test_a_new_connection_that_fails_is_an_error(answer: bytes | None, message: str) -> None:
    async def work(client: HttpClient) -> None:
        with pytest.raises(LostConnection, match=message):
            await get(client)
        assert client.connections == 1

    with_server(lambda _connection, _request: answer, work)


def test_a_server_that_is_not_there_is_an_error() -> None:
    async def work(client: HttpClient) -> None:
        nobody = HttpClient("http://127.0.0.1:9")
        with pytest.raises(OSError, match="9"):
            await get(nobody)

    with_server(lambda _connection, _request: OK, work)


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:99999", "http://host:0", "http://[::1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises((ConfigError, ValueError)):
        HttpClient(url)
