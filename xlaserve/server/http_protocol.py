"""uvicorn's HTTP connection with a bound on what it lacks one for: the head of a request, which is kept in memory until it is complete."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from xlaserve.server.errors import Problem

MAX_HEAD_BYTES = 64 * 1024
"""Of the request line and all headers together; more than any proxy or browser sends."""


class BoundedHeads(HttpToolsProtocol):
    """Refuses, and closes, a connection whose request does not get to the end of its head."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_bytes: int | None = 0  # of the head that is being read; None while a body is
        self._complete = 0  # requests

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        complete = self._complete
        super().data_received(data)
        if self._head_bytes is not None and complete == self._complete:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse()

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._head_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._head_bytes, self._complete = 0, self._complete + 1
        super().on_message_complete()

    def _refuse(self) -> None:
        message = f"The request line and the headers are larger than {MAX_HEAD_BYTES} bytes, the limit of this server."
        body = Problem(431, message, "invalid_request_error", None, "request_header_fields_too_large").payload()
        head = f"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
