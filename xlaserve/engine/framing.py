"""Messages on a byte stream: four bytes of length, then msgpack."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

Message = TypeVar("Message")

_LENGTH = 4


class FrameWriter:
    """Turns messages into frames."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()

    def frame(self, message: msgspec.Struct) -> bytearray:
        """One message as it goes on the wire."""
        frame = bytearray(_LENGTH)
        self._encoder.encode_into(message, frame, _LENGTH)
        frame[:_LENGTH] = (len(frame) - _LENGTH).to_bytes(_LENGTH, "little")
        return frame


class FrameReader(Generic[Message]):
    """Finds messages in bytes that arrive in any pieces.

    Args:
        kind: type of the messages, a union of tagged structs.
    """

    def __init__(self, kind: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Take what came; the messages that are complete now."""
        self._buffer += data
        messages: list[Message] = []
        at = 0
        with memoryview(self._buffer) as view:
            while (start := at + _LENGTH) <= len(view) and (end := start + int.from_bytes(view[at:start], "little")) <= len(view):
                messages.append(self._decoder.decode(view[start:end]))
                at = end
        del self._buffer[:at]
        return messages
