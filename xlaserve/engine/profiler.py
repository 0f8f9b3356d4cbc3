"""Profiles of the engine as JAX takes them, to be opened in XProf or Perfetto: one at a time, into a directory that the operator chose."""

from __future__ import annotations

from xlaserve.errors import EngineStateError


class Profiler:
    """Starts and stops profiles, in the engine's process."""

    def __init__(self) -> None:
        self._directory: str | None = None

    def start(self, directory: str) -> None:
        """Record from here on.

        Raises:
            EngineStateError: a profile is being recorded.
        """
        if self._directory is not None:
            raise EngineStateError("A profile is being recorded: stop it first.")
        import jax

        jax.profiler.start_trace(directory)
        self._directory = directory

    def stop(self) -> None:
        """Write what has been recorded.

        Raises:
            EngineStateError: nothing is being recorded.
        """
        if self._directory is None:
            raise EngineStateError("No profile is being recorded: start one first.")
        import jax

        self._directory = None
        jax.profiler.stop_trace()
