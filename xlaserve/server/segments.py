"""A model's output as a sequence of segments, each opened, written and closed before the next: reasoning, text, calls of tools.

It is what the items of /v1/responses and the content blocks of /v1/messages have in common. However the output was cut into events,
the segments and their texts are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from xlaserve.server.parsing.events import Content, OutputEvent, Reasoning, ToolCallArguments, ToolCallStart

SegmentKind = Literal["reasoning", "text", "tool"]


@dataclass(slots=True)
class Open:
    """A segment begins; `id` and `name` are those of a tool's call."""

    kind: SegmentKind
    id: str = ""
    name: str = ""


@dataclass(slots=True)
class Piece:
    """More text of the open segment, never empty; a tool's call has JSON text."""

    text: str


@dataclass(slots=True)
class Close:
    """The open segment is complete."""


Step = Open | Piece | Close


class Segments:
    """Turns output events into steps.

    Blank text between other segments is what a model's format puts there: it opens no segment of its own, but belongs to text that follows.
    There is at least one segment: a text without characters where the model said nothing.
    """

    def __init__(self) -> None:
        self._open: SegmentKind | None = None
        self._held: SegmentKind | None = None
        self._blank = ""
        self._any = False

    def feed(self, events: Iterable[OutputEvent]) -> list[Step]:
        """The steps of events that follow those of the call before."""
        steps: list[Step] = []
        for event in events:
            match event:
                case Content(text):
                    self._write("text", text, steps)
                case Reasoning(text):
                    self._write("reasoning", text, steps)
                case ToolCallStart(_, id, name):
                    self._start(Open("tool", id, name), steps)
                case ToolCallArguments(_, text):
                    if text:
                        steps.append(Piece(text))
        return steps

    def finish(self) -> list[Step]:
        """The last steps, once the output is complete."""
        steps: list[Step] = []
        if not self._any:
            blank = self._blank if self._held == "text" else ""
            self._start(Open("text"), steps)
            if blank:
                steps.append(Piece(blank))
        steps.append(Close())
        return steps

    def _write(self, kind: SegmentKind, text: str, steps: list[Step]) -> None:
        if kind == self._open:
            self._held, self._blank = None, ""
            if text:
                steps.append(Piece(text))
            return
        if kind != self._held:
            self._held, self._blank = kind, ""
        text = self._blank + text
        if text.isspace() or not text:
            self._blank = text
            return
        self._start(Open(kind), steps)
        steps.append(Piece(text))

    def _start(self, opening: Open, steps: list[Step]) -> None:
        if self._any:
            steps.append(Close())
        steps.append(opening)
        self._open, self._held, self._blank, self._any = opening.kind, None, "", True
