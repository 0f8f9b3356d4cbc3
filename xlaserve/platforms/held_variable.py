"""An environment variable that code out of our hands reads, held at one value while threads need it so."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager


class HeldVariable:
    """Threads that need the same value hold it together; those that need another wait until they are through.

    Args:
        name: of the variable.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._turn = threading.Condition()
        self._holders = 0
        self._value = ""
        self._before: str | None = None

    @contextmanager
    def hold(self, value: str) -> Generator[None]:
        """Have the variable at `value`; afterwards it is what it was."""
        with self._turn:
            self._turn.wait_for(lambda: not self._holders or self._value == value)
            if not self._holders:
                self._before, self._value = os.environ.get(self._name), value
                os.environ[self._name] = value
            self._holders += 1
        try:
            yield
        finally:
            with self._turn:
                self._holders -= 1
                if not self._holders:
                    if self._before is None:
                        del os.environ[self._name]
                    else:
                        os.environ[self._name] = self._before
                self._turn.notify_all()
