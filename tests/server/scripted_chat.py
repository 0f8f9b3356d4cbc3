"""A chat run that says what a test wants it to say, for what is made of its events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from xlaserve.engine.outputs import Logprob
from xlaserve.server.chat_run import ChatDelta
from xlaserve.server.parsing.events import Content, OutputEvent, Reasoning, ToolCallArguments, ToolCallStart

T = TypeVar("T")

# A turn as reasoning models have it: a thought, some text, and calls of two tools.
TURN: list[OutputEvent] = [
    Reasoning("I should "),
    Reasoning("look."),
    Content("\n\n"),
    Content("Let me "),
    Content("see.\n"),
    ToolCallStart(0, "call_a", "look"),
    ToolCallArguments(0, '{"at": '),
    ToolCallArguments(0, '"it"}'),
    Content("\n"),
    ToolCallStart(1, "call_b", "wait"),
    ToolCallArguments(1, "{}"),
]
TEXT: list[OutputEvent] = [Content("Hel"), Content("lo")]


class ScriptedChat:
    """Args: `steps`: of the events that come together; `failure` is raised after them."""

    def __init__(
        self,
        steps: Sequence[Sequence[OutputEvent]],
        finish_reason: str = "stop",
        *,
        stop_reason: int | str | None = None,
        failure: Exception | None = None,
        logprobs: bool = False,
    ) -> None:
        self.aborts = 0
        self._steps = steps
        self._end = ChatDelta(0, [], [], [], finish_reason, stop_reason)
        self._failure = failure
        self._logprobs = logprobs

    async def deltas(self) -> AsyncGenerator[list[ChatDelta]]:
        for number, events in enumerate(self._steps):
            last = number == len(self._steps) - 1 and self._failure is None
            text = "".join(event.text for event in events if isinstance(event, Content | Reasoning))
            delta = replace(self._end, events=list(events), finish_reason=self._end.finish_reason if last else None)
            if self._logprobs and text:
                delta = replace(delta, token_ids=[number], logprobs=[{number: Logprob(-1.0, 1, text)}])
            yield [delta]
        if self._failure is not None:
            raise self._failure

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": 10,
            "completion_tokens": 7,
            "total_tokens": 17,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 3},
        }

    def abort(self) -> None:
        self.aborts += 1


def one_by_one(events: Sequence[OutputEvent]) -> list[list[OutputEvent]]:
    """Steps of one event each."""
    return [[event] for event in events]


def run(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives."""
    return asyncio.run(work)
