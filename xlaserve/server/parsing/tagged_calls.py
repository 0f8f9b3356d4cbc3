"""Calls whose arguments are tagged plain text, which becomes JSON by the tool's schema: Qwen3-Coder's and GLM's."""

from __future__ import annotations

from dataclasses import dataclass

from xlaserve.server.parsing.json_calls import MAX_NAME
from xlaserve.server.parsing.reader import Emit, Reader, Steps, markers
from xlaserve.server.parsing.sink import Sink
from xlaserve.server.parsing.tools import TEXT, dumps, typed


@dataclass(frozen=True, slots=True)
class TaggedCalls:
    """A name, then keys and values.

    Args:
        name_open: before the name; may itself be the marker that opens the call.
        name_ends: after the name; where it is one of `closes` or `key_open`, that is read again.
        key_open, key_close, value_open, value_close: around keys and values; a key may open the value at once.
        value_ends: what else ends a value, since models forget to close them.
        closes: markers that end the call.
        trim: white space that the format puts around values.
    """

    name_open: str
    name_ends: tuple[str, ...]
    key_open: str
    key_close: str
    value_open: str
    value_close: str
    value_ends: tuple[str, ...]
    closes: tuple[str, ...]
    trim: str

    def read(self, reader: Reader, sink: Sink, marker: str) -> Steps[bool]:
        """Read one call; False where there is none."""
        if self.name_open and marker != self.name_open:
            yield from reader.skip_space()
            if not (yield from reader.take(self.name_open)):
                return False
        name, end = yield from reader.until(markers(self.name_ends), MAX_NAME)
        name = name.strip()
        if not name or not end or any(character in name for character in ' \n\t{}<>"'):
            return False
        if end in self.closes or end == self.key_open:
            reader.at -= len(end)
        sink.start_call(name)
        sink.arguments("{")
        separator, inside = "", markers((self.key_open, *self.closes))
        while True:
            # Anything besides keys is no part of the arguments.
            if not (end := (yield from reader.pump(inside, sink.content))):
                return True
            if end != self.key_open:
                reader.at -= len(end)
                sink.arguments("}")
                return True
            key, end = yield from reader.until(markers((self.key_close,)), MAX_NAME)
            if self.value_open and end:
                yield from reader.skip_space()
                end = yield from reader.take(self.value_open)
            if not end:
                sink.content(self.key_open + key)
                continue
            sink.arguments(f"{separator}{dumps(key.strip())}: ")
            separator = ", "
            yield from self._value(reader, sink, sink.tools.types(name, key.strip()))

    def _value(self, reader: Reader, sink: Sink, types: frozenset[str]) -> Steps[None]:
        ends = markers((self.value_close, *self.value_ends))
        if self.trim:
            yield from reader.take(self.trim)
        if types == TEXT:
            sink.arguments('"')
            text = EscapedText(sink.arguments, self.trim)
            end = yield from reader.pump(ends, text.add)
            text.end(whole=bool(end))
        else:
            plain, end = yield from reader.until(ends)
            written = typed(plain.removesuffix(self.trim) if self.trim else plain, types)
            sink.arguments(written if end else written.removesuffix('"'))
        if end != self.value_close:
            reader.at -= len(end)


class EscapedText:
    """Writes pieces of a text as the inside of a JSON string, without what is trimmed from its end."""

    def __init__(self, emit: Emit, trim: str) -> None:
        self._emit = emit
        self._trim = trim
        self._held = ""

    def add(self, text: str) -> None:
        text = self._held + text
        self._held = self._trim if self._trim and text.endswith(self._trim) else ""
        self._emit(dumps(text.removesuffix(self._held))[1:-1])

    def end(self, *, whole: bool) -> None:
        """The text has ended, or broken off."""
        self._emit('"' if whole else dumps(self._held)[1:-1])
