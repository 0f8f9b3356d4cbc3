"""Fewer and larger increments of a stream, for clients that care more for throughput than for each token at once (`stream_interval`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from xlaserve.engine.outputs import Logprob
from xlaserve.errors import InvalidRequestError
from xlaserve.server.generation import Delta
from xlaserve.server.protocol import MAX_STREAM_INTERVAL


def check_interval(interval: int | None) -> None:
    """Raise InvalidRequestError unless it is a number of tokens from 1 to 1024, or None."""
    if interval is not None and not 1 <= interval <= MAX_STREAM_INTERVAL:
        raise InvalidRequestError(
            f"`stream_interval` must be between 1 and {MAX_STREAM_INTERVAL}, got {interval}.", field="stream_interval", value=interval
        )


@dataclass(slots=True)
class _Held:
    """Increments of one choice that wait for more."""

    last: Delta
    texts: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[dict[int, Logprob]] = field(default_factory=list[dict[int, Logprob]])

    def add(self, delta: Delta) -> None:
        self.last = delta
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs

    def joined(self) -> Delta:
        return replace(self.last, text="".join(self.texts), token_ids=self.token_ids, logprobs=self.logprobs)


async def paced(steps: AsyncGenerator[list[Delta]], interval: int | None) -> AsyncGenerator[list[Delta]]:
    """The same increments, those of each choice joined until they hold `interval` tokens; its first and its last come at once.

    Args:
        steps: closed when this is.
        interval: tokens of a choice; None and 1 leave everything as it is.
    """
    held: dict[int, _Held | None] = {}  # by choice; None where nothing waits
    async with aclosing(steps):
        try:
            async for deltas in steps:
                if interval is None or interval == 1:
                    yield deltas
                    continue
                ready: list[Delta] = []
                for delta in deltas:
                    if delta.choice not in held:
                        held[delta.choice] = None
                        ready.append(delta)
                        continue
                    waiting = held[delta.choice] = held[delta.choice] or _Held(delta)
                    waiting.add(delta)
                    if delta.finish_reason is not None or len(waiting.token_ids) >= interval:
                        ready.append(waiting.joined())
                        held[delta.choice] = None
                if ready:
                    yield ready
        except Exception:
            # What was generated before the failure is the client's.
            if waits := [waiting.joined() for waiting in held.values() if waiting is not None]:
                yield waits
            raise
