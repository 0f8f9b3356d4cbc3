"""Calls written as a list of Python calls with literal arguments: `[get_weather(city="Paris", days=3), now()]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from xlaserve.server.parsing.json_calls import MAX_NAME
from xlaserve.server.parsing.reader import Reader, Steps
from xlaserve.server.parsing.sink import Sink
from xlaserve.server.parsing.tools import dumps, kind_of, python_value, typed

_NAME = re.compile(r"[\w.-]+")
_PLAIN = re.compile(r"[^'\"()\[\]{},\\]+")
_QUOTED = re.compile(r"[^'\"\\]+")
_OPENING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True, slots=True)
class PythonCalls:
    """One list of calls, of which the first must name a tool of the request where no marker announces it.

    Args:
        closes: markers that end the calls.
        bare: no marker announces them.
    """

    closes: tuple[str, ...] = ()
    bare: bool = False

    def read(self, reader: Reader, sink: Sink, marker: str) -> Steps[bool]:
        """Read calls; False where there are none."""
        calls = sink.calls
        yield from reader.skip_space()
        if not (yield from reader.take("[")):
            return False
        while True:
            yield from reader.skip_space()
            before = reader.at
            if not (yield from self._call(reader, sink)):
                reader.at = before
                break
            reader.forget()
            yield from reader.skip_space()
            if (yield from reader.take(",", "]")) != ",":
                break
        return sink.calls > calls

    def _call(self, reader: Reader, sink: Sink) -> Steps[bool]:
        name = yield from reader.match(_NAME, MAX_NAME)
        if not name or (self.bare and name not in sink.tools) or not (yield from reader.take("(")):
            return False
        yield from reader.skip_space()
        if (yield from reader.take(")")):
            sink.start_call(name)
            sink.arguments("{}")
            return True
        started, separator = False, "{"
        while True:
            before = reader.at
            yield from reader.skip_space()
            key = yield from reader.match(_NAME, MAX_NAME)
            yield from reader.skip_space()
            if not key or not (yield from reader.take("=")):
                if started:
                    # A comma may follow the last argument.
                    reader.at = before
                    yield from reader.skip_space()
                    if (yield from reader.take(")")):
                        sink.arguments("}")
                return started
            if not started:
                sink.start_call(name)
                started = True
            sink.arguments(f"{separator}{dumps(key)}: ")
            separator = ", "
            text, end = yield from _expression(reader)
            written = _written(text.strip(), sink.tools.types(name, key))
            sink.arguments(written if end else written.removesuffix('"'))
            if end != ",":
                if end:
                    sink.arguments("}")
                return True


def _written(text: str, types: frozenset[str]) -> str:
    """An argument as JSON of the type that the schema wants, or of its own; its source as a string where it is no literal."""
    value = python_value(text)
    if value is ...:
        return dumps(text)
    kind = kind_of(value)
    if not types or kind in types or (kind == "integer" and "number" in types):
        return dumps(value)
    return typed(value if isinstance(value, str) else text, types)


def _expression(reader: Reader) -> Steps[tuple[str, str]]:
    """The source of one argument, and what ends it: a comma, the closing parenthesis, or "" for the end of the text."""
    begin = reader.at
    open_brackets: list[str] = []
    quote = ""
    while True:
        if not (yield from reader.peek()):
            return reader.text[begin : reader.at], ""
        character = reader.text[reader.at]
        if character == "\\":
            reader.at += len((yield from reader.peek(2)))
            continue
        if match := (_QUOTED if quote else _PLAIN).match(reader.text, reader.at):
            reader.at = match.end()
            continue
        if quote:
            reader.at += 1
            quote = "" if character == quote else quote
            continue
        if not open_brackets and character in ",)":
            text = reader.text[begin : reader.at]
            reader.at += 1
            return text, character
        reader.at += 1
        if character in "'\"":
            quote = character
        elif character in _OPENING:
            open_brackets.append(_OPENING[character])
        elif open_brackets and character == open_brackets[-1]:
            open_brackets.pop()
