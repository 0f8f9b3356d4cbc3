"""Runs a parser over a text, in pieces, and puts together what comes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from xlaserve.server.parsing.events import Content, OutputEvent, Reasoning, ToolCallArguments, ToolCallStart
from xlaserve.server.parsing.formats import REASONING_FORMATS, TOOL_FORMATS, ReasoningFormat, ToolFormat
from xlaserve.server.parsing.parser import OutputParser
from xlaserve.server.parsing.tools import ToolSchemas

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "ratio": {"type": "number"},
        "where": {"type": "object"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
}
TOOLS: dict[str, Mapping[str, Any]] = {"get_weather": WEATHER, "now": {"type": "object", "properties": {}}, "a.b-c": {}}


@dataclass
class Read:
    """What came of a text."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


def parser(
    calls: str | ToolFormat | None = None,
    reasoning: str | ReasoningFormat | None = None,
    *,
    prompt: str = "",
    special: Iterable[str] = (),
    tools: Mapping[str, Mapping[str, Any]] = TOOLS,
) -> OutputParser:
    numbers = count()
    thoughts = REASONING_FORMATS[reasoning] if isinstance(reasoning, str) else reasoning
    return OutputParser(
        TOOL_FORMATS[calls] if isinstance(calls, str) else calls,
        thoughts,
        ToolSchemas(tools),
        opened=thoughts is not None and thoughts.opened_by(prompt),
        special=tuple(special),
        new_id=lambda: f"call_{next(numbers)}",
    )


def read_events(machine: OutputParser, pieces: Iterable[str]) -> list[OutputEvent]:
    """The events of a text in pieces, merged where they continue each other."""
    merged: list[OutputEvent] = []
    for events in (*map(machine.feed, pieces), machine.finish()):
        for event in events:
            last = merged[-1] if merged else None
            if type(event) is type(last) and not isinstance(event, ToolCallStart):
                assert last is not None
                if not isinstance(event, ToolCallArguments) or event.index == last.index:  # type: ignore[union-attr]
                    merged[-1] = replace(last, text=last.text + event.text)  # type: ignore[union-attr, arg-type]
                    continue
            merged.append(replace(event))
    return merged


def together(events: Iterable[OutputEvent]) -> Read:
    read = Read()
    for event in events:
        match event:
            case Content(text):
                assert text
                read.content += text
            case Reasoning(text):
                assert text
                read.reasoning += text
            case ToolCallStart(index, call_id, name):
                assert index == len(read.calls)
                read.calls.append((name, ""))
                read.ids.append(call_id)
            case ToolCallArguments(index, text):
                assert text
                name, arguments = read.calls[index]
                read.calls[index] = name, arguments + text
    return read


def read(text: str, *args: Any, **options: Any) -> Read:
    """What a text means, read letter by letter; reading it at once must give the same."""
    whole = read_events(parser(*args, **options), [text])
    assert read_events(parser(*args, **options), text) == whole
    return together(whole)
