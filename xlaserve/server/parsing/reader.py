"""Text that arrives in pieces, read as if all of it were there.

Readers are generators: they `yield` where they need more text than has come, and decide only what no further text can change. So the way
in which a text was cut into pieces makes no difference to what is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from functools import lru_cache
from typing import TypeAlias, TypeVar

Result = TypeVar("Result")
Steps: TypeAlias = Generator[None, None, Result]
Emit: TypeAlias = Callable[[str], None]

_SPACE = re.compile(r"\s*")


class Markers:
    """A set of texts to be found, the leftmost and of those the longest first.

    Args:
        texts: to look for; empty ones are left out.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        found = sorted({text for text in texts if text}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, found))) if found else None
        self._prefixes = {text[:end] for text in found for end in range(1, len(text))}
        self._first = {text[0] for text in found}
        self._longest = max(map(len, found), default=1)

    def find(self, text: str, start: int, *, ended: bool) -> tuple[int, str]:
        """How far `text` from `start` on is certain to be free of markers, and the marker that stands there, "" where none does yet."""
        match = self._pattern.search(text, start) if self._pattern is not None else None
        if ended:
            return (match.start(), match[0]) if match else (len(text), "")
        undecided = self._undecided(text, start)
        # What stands there may also be the beginning of a longer one.
        if match is None or undecided <= match.start():
            return undecided, ""
        return match.start(), match[0]

    def _undecided(self, text: str, start: int) -> int:
        """Where the part of the text begins that could become a marker; its length where there is none."""
        for place in range(max(start, len(text) - self._longest + 1), len(text)):
            if text[place] in self._first and text[place:] in self._prefixes:
                return place
        return len(text)


@lru_cache(maxsize=256)
def markers(texts: tuple[str, ...]) -> Markers:
    """The set of these texts, made once."""
    return Markers(texts)


class Reader:
    """What has come of a text and is still to be read.

    Attributes:
        text: kept text.
        at: place in it up to which it has been read; may be set back to an earlier one, as far as `forget` was not called.
        ended: no more will come.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False

    def forget(self) -> None:
        """Drop what has been read."""
        if self.at:
            self.text = self.text[self.at :]
            self.at = 0

    def peek(self, count: int = 1) -> Steps[str]:
        """The next `count` characters, fewer at the end."""
        while len(self.text) - self.at < count and not self.ended:
            yield
        return self.text[self.at : self.at + count]

    def skip_space(self) -> Steps[None]:
        """Go to the next character that is no white space."""
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match is not None
            self.at = match.end()
            if self.at < len(self.text) or self.ended:
                return
            yield

    def take(self, *options: str) -> Steps[str]:
        """Read one of some texts, the longest that is there; "" where none is."""
        while True:
            rest = self.text[self.at : self.at + max(map(len, options))]
            if self.ended or not any(len(option) > len(rest) and option.startswith(rest) for option in options):
                found = max((option for option in options if rest.startswith(option)), key=len, default="")
                self.at += len(found)
                return found
            yield

    def match(self, pattern: re.Pattern[str], most: int) -> Steps[str]:
        """Read what matches a pattern, up to `most` characters; the pattern must match every beginning of what it matches."""
        while True:
            match = pattern.match(self.text, self.at, self.at + most)
            end = match.end() if match else self.at
            if end < len(self.text) or self.ended or end - self.at >= most:
                found = self.text[self.at : end]
                self.at = end
                return found
            yield

    def until(self, wanted: Markers, most: int | None = None) -> Steps[tuple[str, str]]:
        """Read up to and over a marker: the text before it, and the marker; no marker at the end, or after `most` characters."""
        begin = place = self.at
        while True:
            place, marker = wanted.find(self.text, place, ended=self.ended)
            if most is not None and place - begin > most:
                place, marker = begin + most, ""
            elif not marker and not self.ended:
                yield
                continue
            self.at = place + len(marker)
            return self.text[begin:place], marker

    def pump(self, wanted: Markers, emit: Emit) -> Steps[str]:
        """Give out text as it comes, up to and over a marker, and return that; "" at the end. The marker may be read again."""
        while True:
            place, marker = wanted.find(self.text, self.at, ended=self.ended)
            if place > self.at:
                emit(self.text[self.at : place])
            self.at = place
            self.forget()
            self.at = len(marker)
            if marker or self.ended:
                return marker
            yield
