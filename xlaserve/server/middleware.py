"""Around every request: its id, the count of requests in flight, the access log, and a last net for unexpected errors."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xlaserve.server.errors import answer_problem, path_of, problem_of
from xlaserve.server.observers import OBSERVERS
from xlaserve.server.state import ServerState

log = logging.getLogger("xlaserve.access")

# Asked for every few seconds by machines: too many lines for a log that a person reads.
_PROBES = frozenset({"/health", "/ping", "/ready", "/metrics", "/version"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9._:@+=/-]")
MAX_REQUEST_ID = 128
MAX_LOGGED_PATH = 512
# Nginx's number for a client that closed the connection before the answer; only ever logged and counted.
CLIENT_CLOSED_REQUEST = 499


class RequestScope:
    """ASGI middleware. The response carries `X-Request-Id`: the client's, reduced to harmless characters, or a new one."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _NOT_IN_IDS.sub("", headers.get("x-request-id", ""))[:MAX_REQUEST_ID] or uuid.uuid4().hex
        if self._state.observers:
            OBSERVERS.set(tuple(make(request_id, headers) for make in self._state.observers))
        status = CLIENT_CLOSED_REQUEST
        started = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        self._state.enter(load=scope["method"] == "POST")
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_CLOSED_REQUEST
        except Exception as error:
            if status != CLIENT_CLOSED_REQUEST:
                raise
            await answer_problem(problem_of(error), path_of(scope))(scope, receive, send_with_id)
        finally:
            self._state.leave(load=scope["method"] == "POST")
            route = scope.get("route")
            path = getattr(route, "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "OTHER"
            self._state.metrics.http_requests[method, path, status] += 1
            if self._state.settings.access_log:
                self._log(request_id, scope, path, status, (time.monotonic() - started) * 1000)

    def _log(self, request_id: str, scope: Scope, route: str, status: int, milliseconds: float) -> None:
        # What a client has sent must not look like a line of ours.
        path = scope["path"][:MAX_LOGGED_PATH].encode("unicode_escape").decode()
        data = {"request_id": request_id, "method": scope["method"], "path": path, "status": status, "milliseconds": round(milliseconds, 1)}
        level = logging.DEBUG if route in _PROBES else logging.INFO
        log.log(level, '%s "%s %s" %d %.1f ms', *data.values(), extra={"data": data})
