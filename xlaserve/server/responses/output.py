"""The output items of a response and the events that tell of them, made together from one pass over what the model says.

A whole answer is what its stream's events add up to, because nothing else makes either.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from xlaserve.server.chat_run import ChatDelta
from xlaserve.server.responses.items import Item, new_id
from xlaserve.server.responses.logprobs import TextLogprobs
from xlaserve.server.segments import Close, Open, Piece, SegmentKind, Segments, Step

_PREFIXES: dict[SegmentKind, str] = {"reasoning": "rs", "text": "msg", "tool": "fc"}
_DELTAS: dict[SegmentKind, str] = {
    "reasoning": "response.reasoning_text.delta",
    "text": "response.output_text.delta",
    "tool": "response.function_call_arguments.delta",
}


class EventLine:
    """Numbers the events of one response and makes their frames."""

    def __init__(self) -> None:
        self.count = 0

    def event(self, kind: str, **fields: Any) -> bytes:
        """One event with these fields."""
        return self.spliced(b"event: %b\ndata: %b" % (kind.encode(), orjson.dumps({"type": kind, **fields})[:-1]))

    def spliced(self, opened: bytes) -> bytes:
        """The frame of an event whose JSON object has all of its fields but the sequence number."""
        number = self.count
        self.count += 1
        return b'%b,"sequence_number":%d}\n\n' % (opened, number)


class OutputItem:
    """One item while it is written.

    Args:
        opening: what the item is.
        index: its place among the response's items.
    """

    def __init__(self, opening: Open, index: int) -> None:
        self.kind = opening.kind
        self.id = new_id(_PREFIXES[opening.kind])
        self.logprobs: list[dict[str, Any]] = []
        self._call = {"call_id": opening.id, "name": opening.name}
        self._pieces: list[str] = []
        self.place: dict[str, Any] = {"item_id": self.id, "output_index": index}
        if self.kind != "tool":
            self.place["content_index"] = 0
        kind = _DELTAS[self.kind]
        head = orjson.dumps({"type": kind, **self.place})[:-1]
        self._delta = b'event: %b\ndata: %b,"delta":' % (kind.encode(), head)

    @property
    def text(self) -> str:
        """What was written so far."""
        return "".join(self._pieces)

    def write(self, text: str, logprobs: list[dict[str, Any]]) -> bytes:
        """Adds text, and gives the event that tells so, without its sequence number."""
        self._pieces.append(text)
        if self.kind != "text":
            return self._delta + orjson.dumps(text)
        self.logprobs += logprobs
        return b'%b%b,"logprobs":%b' % (self._delta, orjson.dumps(text), orjson.dumps(logprobs))

    def part(self, text: str) -> dict[str, Any]:
        """The content part of reasoning or a message."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs}

    def item(self, status: str, *, empty: bool = False) -> Item:
        """The item as clients see it: with all that was written, or empty as it is announced."""
        match self.kind:
            case "tool":
                return {
                    "type": "function_call",
                    "id": self.id,
                    **self._call,
                    "arguments": "" if empty else self.text,
                    "status": status,
                }
            case "reasoning":
                content = [] if empty else [self.part(self.text)]
                return {"type": "reasoning", "id": self.id, "summary": [], "content": content, "encrypted_content": None, "status": status}
            case _:
                content = [] if empty else [self.part(self.text)]
                return {"type": "message", "id": self.id, "role": "assistant", "content": content, "status": status}


class Output:
    """All output items of one response.

    Args:
        line: numbers the events.
        logprobs: finds the log probabilities of text.
    """

    def __init__(self, line: EventLine, logprobs: TextLogprobs) -> None:
        self._line = line
        self._logprobs = logprobs
        self._segments = Segments()
        self._done: list[Item] = []
        self._open: OutputItem | None = None

    def feed(self, delta: ChatDelta) -> list[bytes]:
        """The frames of the events of what is new."""
        self._logprobs.add(delta)
        return self._write(self._segments.feed(delta.events), "completed")

    def finish(self, status: str) -> list[bytes]:
        """The last frames; the item that was being written gets this status."""
        return self._write(self._segments.finish(), status)

    def items(self, status: str) -> list[Item]:
        """The items so far; one that is being written has this status."""
        return self._done if self._open is None else [*self._done, self._open.item(status)]

    def _write(self, steps: Iterable[Step], status: str) -> list[bytes]:
        frames: list[bytes] = []
        for step in steps:
            match step:
                case Open():
                    self._open = OutputItem(step, len(self._done))
                    frames += self._announce(self._open)
                case Piece(text):
                    assert self._open is not None
                    logprobs = self._logprobs.take(text)
                    frames.append(self._line.spliced(self._open.write(text, logprobs)))
                case Close():
                    assert self._open is not None
                    frames += self._complete(self._open, status)
        return frames

    def _announce(self, item: OutputItem) -> list[bytes]:
        event, place = self._line.event, item.place
        frames = [event("response.output_item.added", output_index=place["output_index"], item=item.item("in_progress", empty=True))]
        if item.kind != "tool":
            frames.append(event("response.content_part.added", **place, part=item.part("")))
        return frames

    def _complete(self, item: OutputItem, status: str) -> list[bytes]:
        event, place, text = self._line.event, item.place, item.text
        done = item.item(status)
        frames: list[bytes] = []
        match item.kind:
            case "tool":
                frames.append(event("response.function_call_arguments.done", **place, arguments=text))
            case "reasoning":
                frames.append(event("response.reasoning_text.done", **place, text=text))
            case _:
                frames.append(event("response.output_text.done", **place, text=text, logprobs=item.logprobs))
        if item.kind != "tool":
            frames.append(event("response.content_part.done", **place, part=item.part(text)))
        frames.append(event("response.output_item.done", output_index=place["output_index"], item=done))
        self._done.append(done)
        self._open = None
        return frames
