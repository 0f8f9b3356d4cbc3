"""A response that can be asked for later: first as it is generated, then as bytes, which are all that is kept of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import orjson

from xlaserve.server.responses.items import Item

if TYPE_CHECKING:  # what generates knows the server's state, of which the records are a part
    from xlaserve.server.responses.run import ResponseRun

Turns = tuple[bytes, ...]
"""A conversation, the oldest first: JSON arrays of items. Those of a conversation's responses are the same objects."""
# An id and where it is noted.
_BYTES_PER_ITEM_ID = 256


class Record:
    """One response.

    Args:
        run: generates it.
        history: the conversation before the request.
        inputs: the request's own items.
        ended: called when nothing more comes, before anybody is told so; it calls `settle`.
        keep_events: so that a stream of them can be taken up again.
    """

    def __init__(self, run: ResponseRun, history: Turns, inputs: list[Item], ended: Callable[[Record], None], *, keep_events: bool) -> None:
        head = run.response()
        self.id: str = head["id"]
        self.background: bool = head["background"]
        self.read: Turns = (*history, orjson.dumps(inputs))
        self.run: ResponseRun | None = run
        self.events: list[bytes] | None = [] if keep_events else None
        self._ended = ended
        self.item_ids: list[str] = []
        self._task: asyncio.Task[None] | None = None
        self._written = b""
        self._body = b""
        self._moved = asyncio.Event()

    @property
    def turns(self) -> Turns:
        """The conversation with this response's output; complete once nothing runs."""
        return (*self.read, self._written)

    @property
    def own_bytes(self) -> int:
        """What it holds besides its turns."""
        return len(self._body) + sum(map(len, self.events or ())) + len(self.item_ids) * _BYTES_PER_ITEM_ID

    def body(self) -> bytes:
        """The response object as it stands, as JSON."""
        return self._body if self.run is None else orjson.dumps(self.run.response())

    def items(self) -> list[Item]:
        """What the model read: the conversation up to and with the request's own items, the oldest first."""
        return [item for turn in self.read for item in orjson.loads(turn)]

    async def generate(self) -> AsyncGenerator[bytes]:
        """The frames of the response's events, as the engine produces them."""
        assert self.run is not None
        run = self.run
        async with aclosing(run.events()) as steps:
            async for frames in steps:
                if self.events is not None:
                    self.events += frames
                if not run.unfinished:
                    self._ended(self)
                self._move()
                yield b"".join(frames)

    async def generate_all(self) -> None:
        """The same for nobody to read along."""
        async with aclosing(self.generate()) as steps:
            async for _ in steps:
                pass

    def output(self, item_id: str) -> Item | None:
        """The output item of this id."""
        return next((item for item in orjson.loads(self._written) if item["id"] == item_id), None)

    def start(self) -> asyncio.Task[None]:
        """Generates in the background from now on."""
        self._task = asyncio.create_task(self.generate_all())
        return self._task

    async def cancel(self) -> None:
        """Ends what runs in the background, and waits until it has ended; harmless when it has."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def follow(self, after: int) -> AsyncGenerator[bytes]:
        """The events after the one with this sequence number, as they come; ends when the response has ended."""
        assert self.events is not None
        position = after + 1
        while True:
            if position < len(self.events):
                frames, position = self.events[position:], len(self.events)
                yield b"".join(frames)
            elif self.run is None:
                return
            else:
                await self._moved.wait()

    def settle(self) -> None:
        """Keeps what there is, as bytes; what still runs is given up. Called once."""
        assert self.run is not None
        self.run.abort()
        response: dict[str, Any] = self.run.response()
        self.item_ids = [item["id"] for item in response["output"]]
        self._body, self._written, self.run = orjson.dumps(response), orjson.dumps(response["output"]), None
        self._move()

    def _move(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
