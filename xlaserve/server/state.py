"""What all requests share: the settings, the engine once it is there, how far loading is, and what is in flight."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.requests import Request

from xlaserve.errors import EngineDeadError, ModelNotFoundError
from xlaserve.server.engine import Engine
from xlaserve.server.errors import NotReadyError, ShuttingDownError, shown, without_paths
from xlaserve.server.metrics import Metrics
from xlaserve.server.observers import MakeObserver
from xlaserve.server.request_log import request_log
from xlaserve.server.responses.store import ResponseStore
from xlaserve.server.settings import ServerSettings
from xlaserve.server.tracing import open_tracing

PROGRESS_LINES = 20

Phase = Literal["loading", "ready", "dead", "stopping"]


class ServerState:
    """One per application. Used on the event loop thread, except for `report`.

    Args:
        settings: of the HTTP side.

    Raises:
        ConfigError: traces are asked for, and cannot be made.

    Attributes:
        metrics: what `/metrics` shows.
        load: requests in flight that ask for work.
        responses: of /v1/responses, finished ones.
        observers: make what is told of each generation.
        idle: set while no request is in flight.
        created: when it was made, in seconds since 1970.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.responses = ResponseStore(settings.max_stored_responses, settings.max_stored_bytes)
        self.load = 0
        self.observers: list[MakeObserver] = [request_log(settings.max_log_len)] if settings.log_requests else []
        if settings.otlp_traces_endpoint is not None:
            self.observers.append(open_tracing(settings.otlp_traces_endpoint).observer)
        self.idle = asyncio.Event()
        self.idle.set()
        self._engine: Engine | None = None
        self._stopping = False
        self._active = 0
        self.created = int(time.time())
        self._started = time.monotonic()
        self._ready_after: float | None = None
        self._progress: deque[str] = deque(maxlen=PROGRESS_LINES)

    @property
    def phase(self) -> Phase:
        """Where the server is in its life."""
        if self._engine is not None and self._engine.errored is not None:
            return "dead"
        if self._stopping:
            return "stopping"
        if self._engine is None:
            return "loading"
        return "ready" if self._engine.healthy else "dead"

    def report(self, line: str) -> None:
        """Notes one line of loading progress. May be called from any thread."""
        self._progress.append(without_paths(line))

    def attach(self, engine: Engine) -> None:
        """The engine is loaded and warm: requests are served from now on."""
        self._engine = engine
        self._ready_after = time.monotonic() - self._started
        self.metrics.attach(engine)

    def stop(self) -> None:
        """Requests are refused from now on; those in flight go on."""
        self._stopping = True

    def require_engine(self) -> Engine:
        """The engine, if it can serve.

        Raises:
            NotReadyError, ShuttingDownError, EngineDeadError: it cannot, and why.
        """
        phase = self.phase
        if phase == "stopping":
            raise ShuttingDownError("The server is shutting down; send the request elsewhere or later.")
        if phase == "dead":
            raise EngineDeadError("The engine has stopped after an internal failure; the server must be restarted.")
        if self._engine is None:
            raise NotReadyError("The model is still loading; GET /ready tells how far it is. Try again in a few seconds.")
        return self._engine

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFoundError where a request names another model than the one served; naming none is fine."""
        served = self.require_engine().model_name
        if name is not None and name != served:
            raise ModelNotFoundError(f"The model {shown(name)} does not exist here; this server serves {served!r}.")

    def enter(self, *, load: bool = True) -> None:
        """A request has arrived; `load`: one that asks for work."""
        self._active += 1
        self.load += load
        self.idle.clear()

    def leave(self, *, load: bool = True) -> None:
        """A request has been answered, or its client has gone."""
        self._active -= 1
        self.load -= load
        if self._active == 0:
            self.idle.set()

    def readiness(self) -> dict[str, Any]:
        """What GET /ready says: the phase, seconds since start (until ready), and the last lines of loading progress."""
        seconds = time.monotonic() - self._started if self._ready_after is None else self._ready_after
        return {"status": self.phase, "seconds": round(seconds, 1), "progress": list(self._progress)}


def state_of(request: Request) -> ServerState:
    """The state of the application that handles the request."""
    return state_of_app(request.app)


def state_of_app(app: Starlette) -> ServerState:
    """The state of an application."""
    state = app.state.server
    assert isinstance(state, ServerState)
    return state
