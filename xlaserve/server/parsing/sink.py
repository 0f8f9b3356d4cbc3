"""Where what was read is put: events, merged where they continue each other, without the white space around markers."""

from __future__ import annotations

from collections.abc import Callable

from xlaserve.server.parsing.events import Content, OutputEvent, Reasoning, ToolCallArguments, ToolCallStart
from xlaserve.server.parsing.tools import ToolSchemas


class _Text:
    """Holds back white space at the end of a text until something follows; drops it at the beginning where told to."""

    def __init__(self) -> None:
        self.trim = False
        self._held = ""

    def add(self, text: str) -> str:
        if self.trim:
            text = text.lstrip()
            self.trim = not text
        kept = text.rstrip()
        if not kept:
            self._held += text
            return ""
        kept = self._held + kept
        self._held = text[len(text.rstrip()) :]
        return kept

    def cut(self) -> None:
        """A marker stands here: the white space before and after it belongs to it."""
        self._held, self.trim = "", True

    def rest(self) -> str:
        held, self._held = self._held, ""
        return held


class Sink:
    """Collects the events of one choice.

    Attributes:
        tools: what may be called.
        calls: how many calls have begun.
        in_reasoning: the model is writing to itself.

    Args:
        tools: what may be called.
        new_id: makes an id for a call that the model gave none.
    """

    def __init__(self, tools: ToolSchemas, new_id: Callable[[], str]) -> None:
        self.tools = tools
        self.calls = 0
        self.in_reasoning = False
        self._new_id = new_id
        self._events: list[OutputEvent] = []
        self._content = _Text()
        self._reasoning = _Text()
        self._reasoning.trim = True

    def content(self, text: str) -> None:
        """Text for the user."""
        if text := self._content.add(text):
            last = self._events[-1] if self._events else None
            if isinstance(last, Content):
                last.text += text
            else:
                self._events.append(Content(text))

    def reasoning(self, text: str) -> None:
        """Text that the model wrote to itself."""
        if text := self._reasoning.add(text):
            last = self._events[-1] if self._events else None
            if isinstance(last, Reasoning):
                last.text += text
            else:
                self._events.append(Reasoning(text))

    def cut(self) -> None:
        """White space around here belongs to a marker."""
        self._content.cut()
        self._reasoning.cut()

    def start_call(self, name: str, call_id: str | None = None) -> None:
        """A call has begun; its arguments follow."""
        self.cut()
        self._events.append(ToolCallStart(self.calls, call_id or self._new_id(), name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """A piece of the last call's arguments, as JSON."""
        if not text:
            return
        last = self._events[-1] if self._events else None
        if isinstance(last, ToolCallArguments) and last.index == self.calls - 1:
            last.text += text
        else:
            self._events.append(ToolCallArguments(self.calls - 1, text))

    def end(self) -> None:
        """The text has ended: white space that was held back is part of it."""
        for text, kind in ((self._reasoning, Reasoning), (self._content, Content)):
            if rest := text.rest():
                self._events.append(kind(rest))

    def take(self) -> list[OutputEvent]:
        """The events since the last call of this."""
        events, self._events = self._events, []
        return events
