"""The increments of one request, for one reader on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xlaserve.engine.outputs import CompletionOutput, RequestOutput


class OutputStream:
    """Asynchronous iterator over increments. What a slow reader has not fetched is merged, so it holds at most one output.

    Args:
        request_id: the request's name.
        prompt_token_ids: its prompt.
        on_abort: what ends the request in the engine.
    """

    def __init__(self, request_id: str, prompt_token_ids: list[int], on_abort: Callable[[], None]) -> None:
        self.request_id = request_id
        self.prompt_token_ids = prompt_token_ids
        self._on_abort = on_abort
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._pending: RequestOutput | None = None
        self._error: Exception | None = None
        self._ended = False

    def put(self, output: RequestOutput) -> None:
        """Take an increment. On the loop's thread."""
        if self._pending is None:
            self._pending = output
        else:
            _extend(self._pending, output)
        self._ready.set()

    def fail(self, error: Exception) -> None:
        """End with an error. On the loop's thread."""
        self._error = error
        self._ready.set()

    def abort(self) -> None:
        """End the request and free what it holds; the iteration ends. From any thread, as often as wanted, also after its end."""
        if self._loop.is_closed():
            return
        try:
            on_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            on_loop = False
        if on_loop:
            self._end()
        else:
            self._loop.call_soon_threadsafe(self._end)

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> RequestOutput:
        while self._pending is None and self._error is None and not self._ended:
            self._ready.clear()
            await self._ready.wait()
        if self._pending is not None:
            output, self._pending = self._pending, None
            self._ended = self._ended or output.finished
            return output
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._pending = None
            self._on_abort()
            self._ready.set()


def _extend(total: RequestOutput, increment: RequestOutput) -> None:
    total.finished, total.num_cached_tokens, total.metrics = increment.finished, increment.num_cached_tokens, increment.metrics
    if increment.prompt_logprobs is not None:
        total.prompt_logprobs = increment.prompt_logprobs
    by_index = {output.index: output for output in total.outputs}
    for output in increment.outputs:
        if (known := by_index.get(output.index)) is None:
            total.outputs.append(output)
        else:
            add_increment(known, output)


def add_increment(total: CompletionOutput, increment: CompletionOutput) -> None:
    """Append one increment of a completion to another, or to the whole before it."""
    total.text += increment.text
    total.token_ids += increment.token_ids
    if increment.logprobs is not None:
        if total.logprobs is None:
            total.logprobs = []
        total.logprobs += increment.logprobs
    if increment.cumulative_logprob is not None:
        total.cumulative_logprob = increment.cumulative_logprob
    total.finish_reason, total.stop_reason = increment.finish_reason, increment.stop_reason
