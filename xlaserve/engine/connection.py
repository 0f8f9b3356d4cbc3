"""How the user's side reaches an engine, wherever that runs. No JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from xlaserve.engine.messages import Finish, TokenEvent
from xlaserve.engine.outputs import EngineStats
from xlaserve.engine.request import Request
from xlaserve.errors import XlaserveError

OnEvents = Callable[[list[TokenEvent]], None]
OnFailure = Callable[[XlaserveError], None]


class Connection(Protocol):
    """A running engine. All of it belongs to the event loop's thread, except `stats`, and nothing blocks."""

    def listen(self, on_events: OnEvents, on_failure: OnFailure) -> None:
        """Say what to call, on the event loop's thread, with the events of each iteration, and once with what ended the engine."""
        ...

    def add(self, request: Request) -> None:
        """Put a validated request in the queue."""
        ...

    def finish(self, message: Finish) -> None:
        """End a sequence. Without effect on one that has ended, and on an engine that has."""
        ...

    async def call(self, method: str, **arguments: Any) -> Any:
        """Ask for one of the things that `xlaserve.engine.controls` knows; done between two iterations.

        Raises:
            XlaserveError: it failed; of the type that it has in the engine.
            EngineDeadError: the engine has ended, or ends before it answers.
        """
        ...

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue, those on their way to it included."""
        ...

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of their prompts."""
        ...

    def stats(self) -> EngineStats:
        """Counters and gauges of the engine, not older than a moment; from any thread."""
        ...

    async def close(self) -> None:
        """End the engine and wait until it has ended."""
        ...
