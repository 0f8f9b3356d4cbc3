"""Fewer and larger increments of a stream, for clients that care more for throughput than for each token at once (`stream_interval`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from xlaserve.errors import InvalidRequestError
from xlaserve.server.generation import Delta
from xlaserve.server.protocol import MAX_STREAM_INTERVAL


def check_interval(interval: int | None) -> None:
    """Raise InvalidRequestError unless it is a number of tokens from 1 to 1024, or None."""
    if interval is not None and not 1 <= interval <= MAX_STREAM_INTERVAL:
        raise InvalidRequestError(
            f"`stream_interval` must be between 1 and {MAX_STREAM_INTERVAL}, got {interval}.", field="stream_interval", value=interval
        )


async def paced(steps: AsyncGenerator[list[Delta]], interval: int | None) -> AsyncGenerator[list[Delta]]:
    """The same increments, those of each choice joined until they hold `interval` tokens; its first and its last come at once.

    Args:
        steps: closed when this is.
        interval: tokens of a choice; None and 1 leave everything as it is.
    """
    held: dict[int, Delta] = {}
    begun: set[int] = set()
    async with aclosing(steps):
        try:
            async for deltas in steps:
                if interval is None or interval == 1:
                    yield deltas
                    continue
                ready: list[Delta] = []
                for delta in deltas:
                    whole = _joined(held.pop(delta.choice, None), delta)
                    if whole.finish_reason is None and whole.choice in begun and len(whole.token_ids) < interval:
                        held[whole.choice] = whole
                    else:
                        begun.add(whole.choice)
                        ready.append(whole)
                if ready:
                    yield ready
        except Exception:
            # What was generated before the failure is the client's.
            if held:
                yield list(held.values())
            raise


def _joined(first: Delta | None, second: Delta) -> Delta:
    if first is None:
        return second
    return replace(
        second,
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
    )
