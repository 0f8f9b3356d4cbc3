"""Calls in Gemma's notation, which is JSON with bare keys and with marker tokens for quotes: `call:f{city:<|"|>Paris<|"|>,days:3}`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from xlaserve.server.parsing.json_calls import MAX_NAME
from xlaserve.server.parsing.reader import Reader, Steps, markers
from xlaserve.server.parsing.sink import Sink
from xlaserve.server.parsing.tagged_calls import EscapedText
from xlaserve.server.parsing.tools import dumps, typed

_NAME = re.compile(r"[\w.-]+")
_KEY = re.compile(r"[^:{}\[\],<]+")
_SCALAR = re.compile(r"[^,}\]<]+")
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class BracedCalls:
    """One call.

    Args:
        quote: stands before and after strings.
    """

    quote: str

    def read(self, reader: Reader, sink: Sink, marker: str) -> Steps[bool]:
        """Read one call; False where there is none."""
        yield from reader.skip_space()
        if not (yield from reader.take("call:")):
            return False
        name = yield from reader.match(_NAME, MAX_NAME)
        yield from reader.skip_space()
        if not name or not (yield from reader.take("{")):
            return False
        sink.start_call(name)
        yield from self._object(reader, sink, name, 1)
        return True

    def _object(self, reader: Reader, sink: Sink, tool: str, depth: int) -> Steps[bool]:
        """The inside of an object; False where it breaks off or is malformed. `tool` is "" in objects whose schema is not looked at."""
        sink.arguments("{")
        separator = ""
        while True:
            yield from reader.skip_space()
            if (yield from reader.take("}")):
                sink.arguments("}")
                return True
            if (yield from reader.take(self.quote)):
                key, _ = yield from reader.until(markers((self.quote,)), MAX_NAME)
            else:
                key = (yield from reader.match(_KEY, MAX_NAME)).strip()
            if not key or not (yield from reader.take(":")):
                return False
            sink.arguments(f"{separator}{dumps(key)}: ")
            separator = ", "
            types = sink.tools.types(tool, key) if tool else frozenset[str]()
            if not (yield from self._value(reader, sink, types, depth)):
                return False
            yield from reader.skip_space()
            if not (yield from reader.take(",")) and (yield from reader.peek()) != "}":
                return False

    def _array(self, reader: Reader, sink: Sink, depth: int) -> Steps[bool]:
        sink.arguments("[")
        separator = ""
        while True:
            yield from reader.skip_space()
            if (yield from reader.take("]")):
                sink.arguments("]")
                return True
            sink.arguments(separator)
            separator = ", "
            if not (yield from self._value(reader, sink, frozenset(), depth)):
                return False
            yield from reader.skip_space()
            if not (yield from reader.take(",")) and (yield from reader.peek()) != "]":
                return False

    def _value(self, reader: Reader, sink: Sink, types: frozenset[str], depth: int) -> Steps[bool]:
        yield from reader.skip_space()
        if (yield from reader.take(self.quote)):
            sink.arguments('"')
            text = EscapedText(sink.arguments, "")
            end = yield from reader.pump(markers((self.quote,)), text.add)
            text.end(whole=bool(end))
            return bool(end)
        if depth < _MAX_DEPTH and (yield from reader.take("{")):
            return (yield from self._object(reader, sink, "", depth + 1))
        if depth < _MAX_DEPTH and (yield from reader.take("[")):
            return (yield from self._array(reader, sink, depth + 1))
        text = (yield from reader.match(_SCALAR, 1 << 20)).strip()
        if text:
            sink.arguments(typed(text, types))
        return bool(text)
