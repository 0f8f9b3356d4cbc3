"""Counts what XLA compiles, through JAX's public monitoring events: after readiness the count must not move."""

from __future__ import annotations

import threading

import jax.monitoring

_COMPILE = "/jax/core/compile/backend_compile_duration"


class CompileEvents:
    """Number of XLA compilations that this process has made since the counter was first asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    @property
    def count(self) -> int:
        """Compilations so far."""
        return self._count

    def _listen(self, event: str, duration_secs: float, **labels: str | int) -> None:
        if event == _COMPILE:
            with self._lock:
                self._count += 1


COMPILE_EVENTS = CompileEvents()
"""One for the process: JAX keeps listeners for good."""
