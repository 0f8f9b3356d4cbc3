"""The content blocks of a message and the events that tell of them, made together from one pass over what the model says.

A whole message is what its stream's events add up to, because nothing else makes either.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import Any

import orjson
from pydantic_core import from_json

from xlaserve.server.chat_run import ChatDelta
from xlaserve.server.segments import Close, Open, Piece, SegmentKind, Segments, Step

Block = dict[str, Any]

_DELTAS: dict[SegmentKind, tuple[str, str]] = {
    "reasoning": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "tool": ("input_json_delta", "partial_json"),
}


def event(kind: str, **fields: Any) -> bytes:
    """The frame of one event."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


class ContentBlock:
    """One block while it is written.

    Args:
        opening: what the block is.
        index: its place in the message.
    """

    def __init__(self, opening: Open, index: int) -> None:
        self.index = index
        self._opening = opening
        self._pieces: list[str] = []
        kind, field = _DELTAS[opening.kind]
        head = orjson.dumps({"type": "content_block_delta", "index": index, "delta": {"type": kind}})[:-2]
        self._delta = b'event: content_block_delta\ndata: %b,"%b":' % (head, field.encode())

    def write(self, text: str) -> bytes:
        """Adds text, and gives the frame that tells so."""
        self._pieces.append(text)
        return self._delta + orjson.dumps(text) + b"}}\n\n"

    def empty(self) -> Block:
        """The block as it is announced."""
        return self._block("")

    def complete(self) -> Block:
        """The block with all that was written."""
        return self._block("".join(self._pieces))

    def _block(self, text: str) -> Block:
        match self._opening.kind:
            case "tool":
                return {"type": "tool_use", "id": self._opening.id, "name": self._opening.name, "input": _input(text)}
            case "reasoning":
                return {"type": "thinking", "thinking": text, "signature": _signature(text)}
            case _:
                return {"type": "text", "text": text}


class Blocks:
    """All content blocks of one message."""

    def __init__(self) -> None:
        self.done: list[Block] = []
        self._segments = Segments()
        self._open: ContentBlock | None = None

    def feed(self, delta: ChatDelta) -> list[bytes]:
        """The frames of the events of what is new."""
        return self._write(self._segments.feed(delta.events))

    def finish(self) -> list[bytes]:
        """The last frames."""
        return self._write(self._segments.finish())

    def _write(self, steps: Iterable[Step]) -> list[bytes]:
        frames: list[bytes] = []
        for step in steps:
            match step:
                case Open():
                    self._open = ContentBlock(step, len(self.done))
                    frames.append(event("content_block_start", index=self._open.index, content_block=self._open.empty()))
                case Piece(text):
                    assert self._open is not None
                    frames.append(self._open.write(text))
                case Close():
                    assert self._open is not None
                    block = self._open.complete()
                    if block["type"] == "thinking":
                        delta = {"type": "signature_delta", "signature": block["signature"]}
                        frames.append(event("content_block_delta", index=self._open.index, delta=delta))
                    frames.append(event("content_block_stop", index=self._open.index))
                    self.done.append(block)
        return frames


def _signature(thinking: str) -> str:
    # Clients send thoughts back only with a signature. This server asks for none, so a digest is enough.
    return base64.b64encode(hashlib.sha256(thinking.encode("utf-8", "replace")).digest()).decode() if thinking else ""


def _input(arguments: str) -> dict[str, Any]:
    """A call's arguments, as far as they were written: what Anthropic's clients make of a stream that was cut off."""
    try:
        found = from_json(arguments, allow_partial=True) if arguments else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
