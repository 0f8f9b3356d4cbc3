"""Calls whose name stands by itself, before arguments in JSON: Mistral's, DeepSeek's and Kimi's."""

from __future__ import annotations

import re
from dataclasses import dataclass

from xlaserve.server.parsing.json_calls import MAX_NAME, copy_container
from xlaserve.server.parsing.reader import Reader, Steps
from xlaserve.server.parsing.sink import Sink

NAME = re.compile(r"[\w.:/-]+")
_NUMBERED = re.compile(r"(?:functions\.)?(.+):\d+")


@dataclass(frozen=True, slots=True)
class NamedCalls:
    """A name, a marker, and an object, perhaps fenced as a code block. DeepSeek V3 writes the kind of tool before the name.

    Args:
        separator: between name and arguments; may be missing where the object follows at once.
        closes: markers that end a call.
        id_marker: what an id between name and separator begins with.
        numbered: the name is an id, such as `functions.get_weather:0`, that holds the tool's name.
    """

    separator: str
    closes: tuple[str, ...] = ()
    id_marker: str = ""
    numbered: bool = False

    def read(self, reader: Reader, sink: Sink, marker: str) -> Steps[bool]:
        """Read one call; False where there is none."""
        yield from reader.skip_space()
        name = yield from reader.match(NAME, MAX_NAME)
        yield from reader.skip_space()
        if not name:
            return False
        call_id: str | None = None
        if self.id_marker and (yield from reader.take(self.id_marker)):
            call_id = (yield from reader.match(NAME, MAX_NAME)) or None
            yield from reader.skip_space()
        yield from reader.take(self.separator)
        yield from reader.skip_space()
        if name == "function" and (kind := (yield from reader.match(NAME, MAX_NAME))):
            name = kind
            yield from reader.skip_space()
        if self.numbered and (match := _NUMBERED.fullmatch(name)):
            call_id, name = name, match[1]
        fence = yield from reader.take("```json", "```")
        yield from reader.skip_space()
        if (yield from reader.peek()) == "{":
            sink.start_call(name, call_id)
            yield from copy_container(reader, sink.arguments, self.closes)
        else:
            before = reader.at
            if not self.closes or not (yield from reader.take(*self.closes)):
                return False
            reader.at = before
            sink.start_call(name, call_id)
            sink.arguments("{}")
        if fence:
            yield from reader.skip_space()
            yield from reader.take("```")
        return True
