"""Requests to the application from within its own process: the ASGI protocol without a socket."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Scope


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response.

    Args:
        status: of HTTP.
        request_id: from its `X-Request-Id`.
        body: its content.
    """

    status: int
    request_id: str
    body: bytes


async def post(app: ASGIApp, path: str, body: bytes) -> Answer:
    """Post JSON to a route, and wait for the whole response. Cancelling it is the client's going away.

    Args:
        app: the application.
        path: of the route.
        body: JSON.
    """
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
        "client": None,
        "server": None,
    }
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    head: Message = {}
    parts: list[bytes] = []

    async def receive() -> Message:
        if unread:
            return unread.pop()
        await asyncio.Event().wait()  # this client never goes away by itself
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            head.update(message)
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    headers = dict(head["headers"])
    return Answer(head["status"], headers.get(b"x-request-id", b"").decode("latin-1"), b"".join(parts))
