"""Stop strings in text that arrives in pieces: nothing is shown that a stop string could still swallow. No JAX."""

from __future__ import annotations


class StopMatcher:
    """Finds the first stop string in a growing text.

    Args:
        stops: the strings, all non-empty; may be none.
        include: keep the matched string at the end of the text.
    """

    def __init__(self, stops: tuple[str, ...], *, include: bool) -> None:
        self._stops = stops
        self._include = include
        self._hold = max((len(stop) for stop in stops), default=1) - 1
        self._held = ""

    def feed(self, text: str, *, match: bool = True) -> tuple[str, str | None]:
        """Take new text.

        Args:
            text: what came.
            match: False where stop strings do not count yet; a match cannot begin in text that was fed so.

        Returns:
            The text that can be shown now, and the stop string that was found, if one was; then nothing may be fed any more.
        """
        if not self._stops:
            return text, None
        if not match:
            shown, self._held = self._held + text, ""
            return shown, None
        self._held += text
        # The match that is complete first counts, the longest of those: so it does not matter in what pieces the text came.
        found = min(((at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0), default=None)
        if found is not None:
            _, at, stop = found
            shown, self._held = self._held[: at + len(stop) if self._include else at], ""
            return shown, stop
        keep = min(self._hold, len(self._held))
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown, None

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        shown, self._held = self._held, ""
        return shown
