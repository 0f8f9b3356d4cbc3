"""Where messages wait for the engine's next iteration. No JAX."""

from __future__ import annotations

import threading
from collections.abc import Callable

from xlaserve.engine.messages import Add, Call, Finish
from xlaserve.engine.request import Request

Message = Request | Add | Finish | Call
"""A request comes as it is, or as the message that describes it."""


class Inbox:
    """A queue that any thread fills and the engine's thread empties."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._changed = threading.Condition()
        self._closed = False

    def put(self, message: Message) -> None:
        """Leave a message, from any thread."""
        with self._changed:
            self._messages.append(message)
            self._changed.notify()

    def close(self) -> None:
        """Let the engine's thread end, from any thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self, busy: Callable[[], bool]) -> list[Message] | None:
        """Everything that has come; waits for something unless there is other work. None once the inbox is closed."""
        with self._changed:
            while not (self._messages or self._closed or busy()):
                self._changed.wait()
            if self._closed:
                return None
            messages, self._messages = self._messages, []
            return messages
