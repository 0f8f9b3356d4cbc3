"""Calls written as JSON objects that hold a name and arguments, and arguments that are JSON by themselves."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from xlaserve.server.parsing.reader import Emit, Reader, Steps
from xlaserve.server.parsing.sink import Sink
from xlaserve.server.parsing.tools import dumps

MAX_NAME = 256
_IN_STRING = re.compile(r'[^"\\]+')
_OUT_OF_STRING = re.compile(r'[^"{}\[\]<]+')
_SCALAR = re.compile(r"[^\s,\]}<]+")
_NAME_KEYS = ("name",)
_ARGUMENT_KEYS = ("arguments", "parameters")


def copy_container(reader: Reader, emit: Emit, ends: tuple[str, ...] = ()) -> Steps[bool]:
    """Give out a JSON object or array as it comes, as it is written; False where the text ends, or one of `ends` stands, before it does."""
    depth, in_string = 0, False
    while True:
        if not (yield from reader.peek()):
            return False
        match = (_IN_STRING if in_string else _OUT_OF_STRING).match(reader.text, reader.at)
        if match:
            reader.at = match.end()
            emit(match[0])
            continue
        character = reader.text[reader.at]
        if in_string and character == "\\":
            emit((yield from reader.peek(2)))
            reader.at = min(reader.at + 2, len(reader.text))
            continue
        if not in_string and character == "<" and ends:
            before = reader.at
            if (yield from reader.take(*ends)):
                reader.at = before
                return False
        reader.at += 1
        emit(character)
        if character == '"':
            in_string = not in_string
        elif not in_string and character in "{[":
            depth += 1
        elif not in_string and character in "}]":
            depth -= 1
            if depth == 0:
                return True


def copy_value(reader: Reader, emit: Emit, ends: tuple[str, ...] = ()) -> Steps[bool]:
    """The same for any JSON value."""
    first = yield from reader.peek()
    if first in ("{", "["):
        return (yield from copy_container(reader, emit, ends))
    if first == '"':
        text, whole = yield from _string_text(reader)
        emit(text)
        return whole
    text = yield from reader.match(_SCALAR, MAX_NAME)
    emit(text)
    return bool(text)


def copy_arguments(reader: Reader, emit: Emit, ends: tuple[str, ...] = ()) -> Steps[bool]:
    """The same for the arguments of a call: an object, which some models write as a string that holds one, or null where there are none."""
    first = yield from reader.peek()
    if first == '"':
        text, whole = yield from _string_text(reader)
        inner = _decoded(text) if whole else None
        emit(inner if inner is not None and _is_object(inner) else text)
        return whole
    if first == "n":
        text = yield from reader.match(_SCALAR, MAX_NAME)
        emit("{}" if text == "null" else text)
        return True
    return (yield from copy_value(reader, emit, ends))


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """`{"name": ..., "arguments": {...}}`, one or several, or an array of them.

    Args:
        closes: markers that end the calls.
        bare: no marker announces them, so that an object must name a tool of the request and have arguments to be a call.
    """

    closes: tuple[str, ...] = ()
    bare: bool = False

    def read(self, reader: Reader, sink: Sink, marker: str) -> Steps[bool]:
        """Read calls; False where there are none."""
        calls = sink.calls
        yield from reader.skip_space()
        array = yield from reader.take("[")
        while True:
            yield from reader.skip_space()
            before = reader.at
            if (yield from reader.peek()) != "{" or not (yield from self._call(reader, sink)):
                reader.at = before
                break
            reader.forget()
            yield from reader.skip_space()
            mark = yield from reader.take("]" if array else ";", ",")
            if mark == "]" or (array and not mark):
                break
        return sink.calls > calls

    def _call(self, reader: Reader, sink: Sink) -> Steps[bool]:
        """One object; False where it is not a call, or breaks off."""
        name, held, started = "", None, False
        pieces: list[str] = []
        reader.at += 1
        while True:
            yield from reader.skip_space()
            if (yield from reader.take("}")):
                break
            key = yield from _string(reader, MAX_NAME)
            yield from reader.skip_space()
            if key is None or not (yield from reader.take(":")):
                return started
            yield from reader.skip_space()
            whole = True
            if key in _NAME_KEYS and not name:
                name = (yield from _string(reader, MAX_NAME)) or ""
                if not name or (self.bare and name not in sink.tools):
                    return False
            elif key in _ARGUMENT_KEYS and not started and held is None:
                if name:
                    sink.start_call(name)
                    started = True
                    whole = yield from copy_arguments(reader, sink.arguments, self.closes)
                else:
                    whole = yield from copy_arguments(reader, pieces.append, self.closes)
                    held = "".join(pieces)
            elif key == "function" and not name and (yield from reader.peek()) == "{":
                # OpenAI's own shape: {"type": "function", "function": {...}}.
                calls = sink.calls
                whole = yield from self._call(reader, sink)
                started = sink.calls > calls
            elif self.bare and key not in ("id", "type"):
                return started
            else:
                whole = yield from copy_value(reader, _drop, self.closes)
            if not whole:
                return started
            yield from reader.skip_space()
            if not (yield from reader.take(",")) and (yield from reader.peek()) != "}":
                return started
        if not started:
            if not name or (self.bare and held is None):
                return False
            sink.start_call(name)
            sink.arguments("{}" if held is None else held)
        return True


@dataclass(frozen=True, slots=True)
class JsonArguments:
    """Nothing but the arguments of one call, whose tool is known beforehand.

    Args:
        name: of the tool.
    """

    name: str

    def read(self, reader: Reader, sink: Sink, marker: str) -> Steps[bool]:
        """Read them; False where no object begins here."""
        yield from reader.skip_space()
        if (yield from reader.peek()) != "{":
            return False
        sink.start_call(self.name)
        yield from copy_container(reader, sink.arguments)
        return True


def _drop(text: str) -> None:
    del text


def _string(reader: Reader, most: int) -> Steps[str | None]:
    """A JSON string's value; None where none stands here or it is too long."""
    if (yield from reader.peek()) != '"':
        return None
    text, whole = yield from _string_text(reader, most)
    return _decoded(text) if whole else None


def _string_text(reader: Reader, most: int | None = None) -> Steps[tuple[str, bool]]:
    """A JSON string as it is written, quotes included, and whether it is whole."""
    begin = reader.at
    reader.at += 1
    while True:
        if not (yield from reader.peek()) or (most is not None and reader.at - begin > most):
            return reader.text[begin : reader.at], False
        match = _IN_STRING.match(reader.text, reader.at)
        if match:
            reader.at = match.end()
        elif reader.text[reader.at] == '"':
            reader.at += 1
            return reader.text[begin : reader.at], True
        else:
            reader.at += len((yield from reader.peek(2)))


def _decoded(text: str) -> str | None:
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _is_object(text: str) -> bool:
    try:
        value = json.loads(text)
        return isinstance(value, dict) and bool(dumps(value))
    except (ValueError, RecursionError):
        return False
