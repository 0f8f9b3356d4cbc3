"""Clients that are too many, too slow or too loud cost the server a bounded amount, and the others nothing."""

from __future__ import annotations

import json
import select
import socket
from contextlib import ExitStack

import pytest

from tests.server.live import TIMEOUT, Live, live_server
from tests.server.scripted_engine import ScriptedEngine, ScriptedStream
from tests.server.test_bad_input import assert_error
from tests.server.test_failures import COMPLETIONS
from xlaserve.server.http_protocol import MAX_HEAD_BYTES

CLIENTS = 200


def test_two_hundred_clients_that_read_nothing() -> None:
    engine = ScriptedEngine(max_model_len=10**9)
    raw = json.dumps({"prompt": "a", "max_tokens": 10**8, "stream": True}).encode()
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with live_server(engine, send_timeout=0.5, send_buffer=4096) as live, ExitStack() as clients:
        for _ in range(CLIENTS):
            connection = clients.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", live.port))
            connection.sendall(head % (COMPLETIONS.encode(), len(raw)) + raw)
        slow = set[ScriptedStream]()
        # Others are served all the while, until the last of them has been given up.
        while len(slow) < CLIENTS or engine.running:
            answer = live.client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 3}).json()
            assert answer["choices"][0]["text"] == "abc"
            slow |= {stream for stream in engine.submitted if stream.params.max_tokens == 10**8}
        assert max(stream.produced for stream in slow) < 5000
        assert live.client.get("/load").json() == {"server_load": 0}


ENDLESS = {
    "request line": (b"GET /", b"x"),
    "header": (b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: ", b"x"),
    "headers": (b"GET /health HTTP/1.1\r\nhost: x\r\n", b"x-many: y\r\n"),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_head_without_end_is_refused(shared: Live, kind: str) -> None:
    start, more = ENDLESS[kind]
    with socket.create_connection(("127.0.0.1", shared.port), TIMEOUT) as connection:
        connection.sendall(start)
        sent, answer = 0, b""
        try:
            while not select.select([connection], [], [], 0)[0]:
                assert sent < 200 * MAX_HEAD_BYTES, "it reads on and on"
                connection.sendall(more * 1000)
                sent += 1000 * len(more)
            while part := connection.recv(65536):
                answer += part
        except OSError:  # what was still on its way to a closed connection can take the answer with it
            pass
    if answer:
        status, _, body = answer.partition(b"\r\n\r\n")
        assert status.startswith(b"HTTP/1.1 431 ")
        assert json.loads(body)["error"]["code"] == "request_header_fields_too_large"
    assert shared.client.get("/health").status_code == 200


def test_large_heads_and_bodies_are_read(shared: Live) -> None:
    headers = {f"x-{number}": "y" * 1000 for number in range(50)}
    for _ in range(3):  # on one connection
        response = shared.client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1, "x": "y" * 10**6}, headers=headers)
        assert response.status_code == 200
    assert_error(404, shared.client.get("/" + "x" * 30_000))
