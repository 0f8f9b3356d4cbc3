"""The one machine that reads a model's text as content, reasoning and tool calls, in pieces or whole, in any format."""

from __future__ import annotations

from collections.abc import Callable, Collection

from xlaserve.server.parsing.events import OutputEvent
from xlaserve.server.parsing.formats import ReasoningFormat, ToolFormat
from xlaserve.server.parsing.harmony import read_harmony
from xlaserve.server.parsing.reader import Reader, Steps, markers
from xlaserve.server.parsing.sink import Sink
from xlaserve.server.parsing.tools import ToolSchemas


class OutputParser:
    """Reads the text of one choice. How the text is cut into pieces makes no difference to the events, once those are merged that go on.

    A call that is malformed before its name is known comes out as content; one that is malformed later keeps what arguments there are.

    Args:
        calls: how the model calls tools; None reads no calls.
        reasoning: how it reasons; None reads no reasoning.
        tools: what may be called.
        opened: the answer begins within reasoning.
        special: texts of special tokens to leave out, as far as they are no markers.
        new_id: makes an id for a call that the model gave none.
    """

    def __init__(
        self,
        calls: ToolFormat | None,
        reasoning: ReasoningFormat | None,
        tools: ToolSchemas,
        *,
        opened: bool = False,
        special: Collection[str] = (),
        new_id: Callable[[], str],
    ) -> None:
        self._calls = calls or ToolFormat()
        self._thoughts = reasoning or ReasoningFormat()
        self._opened = opened
        self._special = frozenset(special)
        self._dropped = (*special, *self._calls.around, *self._thoughts.around)
        self._reader = Reader()
        self._sink = Sink(tools, new_id)
        self._steps = self._answer()
        self._sink.in_reasoning = opened
        next(self._steps, None)

    @property
    def in_reasoning(self) -> bool:
        """Whether the text so far ends within reasoning."""
        return self._sink.in_reasoning

    def feed(self, text: str) -> list[OutputEvent]:
        """The events that more text gives for certain."""
        if not text:
            return []
        self._reader.text += text
        next(self._steps, None)
        return self._sink.take()

    def finish(self) -> list[OutputEvent]:
        """The events that are left when the text has ended."""
        self._reader.ended = True
        next(self._steps, None)
        self._sink.end()
        return self._sink.take()

    def _answer(self) -> Steps[None]:
        if self._calls.channels or self._thoughts.channels:
            yield from read_harmony(self._reader, self._sink, self._special)
            return
        yield from self._reason()
        yield from self._content()

    def _reason(self) -> Steps[None]:
        reader, sink, thoughts = self._reader, self._sink, self._thoughts
        opened = self._opened
        while thoughts.opens:
            before = reader.at
            yield from reader.skip_space()
            if not (yield from reader.take(*thoughts.opens)) and not opened:
                reader.at = before
                return
            opened, sink.in_reasoning = False, True
            final = ("", *thoughts.closes, *thoughts.ends)
            ends = markers((*final, *self._dropped))
            while (marker := (yield from reader.pump(ends, sink.reasoning))) not in final:
                pass
            if marker in thoughts.ends:
                reader.at -= len(marker)
            if marker:
                sink.cut()
                sink.in_reasoning = False

    def _content(self) -> Steps[None]:
        reader, sink, calls = self._reader, self._sink, self._calls
        if calls.bare is not None:
            before = reader.at
            if not (yield from calls.bare.read(reader, sink, "")):
                reader.at = before
        openings = markers((*calls.opens, *self._dropped))
        within = markers((*calls.opens, *calls.closes, *self._dropped))
        in_call = sink.calls > 0
        while marker := (yield from reader.pump(within if in_call else openings, sink.content)):
            if marker in calls.opens:
                in_call = (yield from self._call(marker)) or in_call
            elif marker in calls.closes:
                # What closes a call, and what closes what is around it.
                while marker:
                    yield from reader.skip_space()
                    marker = yield from reader.take(*calls.closes)
                sink.cut()
                in_call = False

    def _call(self, marker: str) -> Steps[bool]:
        reader, sink = self._reader, self._sink
        before = reader.at
        for syntax in self._calls.syntaxes:
            if (yield from syntax.read(reader, sink, marker)):
                return True
            reader.at = before
        if marker not in self._special:
            sink.content(marker)
        return False
