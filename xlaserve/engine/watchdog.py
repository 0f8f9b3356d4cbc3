"""Notices an engine that has work and gets nowhere. Pure logic: whoever calls it brings the time. No JAX."""

from __future__ import annotations


class Watchdog:
    """Compares what an engine has done from one look to the next.

    Args:
        timeout: seconds with work and without progress after which the engine counts as stalled.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._progress = -1
        self._since: float | None = None
        self.stalled = False
        self.stalls = 0

    def look(self, now: float, *, has_work: bool, progress: int) -> bool:
        """Take note of the engine's state.

        Args:
            now: seconds on a clock that only goes forward.
            has_work: whether anything waits or runs.
            progress: a number that changes whenever the engine gets on.

        Returns:
            Whether it has just been found stalled, for the first time since it last got on.
        """
        if self._since is None or not has_work or progress != self._progress:
            self._progress, self._since, self.stalled = progress, now, False
            return False
        if self.stalled or now - self._since < self._timeout:
            return False
        self.stalled = True
        self.stalls += 1
        return True
