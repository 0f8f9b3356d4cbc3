"""`AsyncLLM`: the engine inside an asyncio application. Iterations run in a thread of their own; outputs arrive on the event loop.

The two sides share nothing but messages: requests and ends go to the engine's inbox, token events come back to the loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Sequences
from dataclasses import dataclass, replace
from typing import Any

from xlaserve.engine.build import Engine, build
from xlaserve.engine.config import EngineConfig
from xlaserve.engine.core import TokenEvent
from xlaserve.engine.output_processor import OutputProcessor, Request
from xlaserve.engine.output_stream import OutputStream
from xlaserve.engine.outputs import EngineStats, FinishReason, RequestOutput
from xlaserve.engine.sequence import Sequence
from xlaserve.engine.watchdog import Watchdog
from xlaserve.errors import EngineDeadError, InvalidRequestError, OverloadedError
from xlaserve.models.tokenizer import Tokenizer
from xlaserve.sampling.params import SamplingParams

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Add:
    request: Request


@dataclass(frozen=True, slots=True)
class _Finish:
    sequence: Sequence
    reason: FinishReason
    stop_reason: str | None


@dataclass(frozen=True, slots=True)
class _ResetPrefixCache:
    pass


_Message = _Add | _Finish | _ResetPrefixCache


class AsyncLLM:
    """A model that serves many requests at once.

    The constructor blocks until the model is loaded and every graph is ready; it may run in any thread. `submit` and `generate`
    belong to one event loop.

    Args:
        model: a directory, a .gguf file or a hub id; None is the demo model.
        progress: told one line at a time what happens while it gets ready.
        options: fields of `EngineConfig`.

    Raises:
        CheckpointError, ConfigError: the model or the options cannot be used; the message says why.
    """

    def __init__(self, model: str | None = None, *, progress: Callable[[str], None] | None = None, **options: Any) -> None:
        config = EngineConfig(model=model, **options)
        self._engine: Engine = build(config, progress or log.info)
        self._max_queued = config.max_queued_requests
        self._max_queued_tokens = config.max_queued_tokens
        self._processor = OutputProcessor(self._engine.tokenizer)
        self._streams: dict[str, OutputStream] = {}
        self._queued = self._queued_tokens = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: list[_Message] = []
        self._wake = threading.Condition()
        self._closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()
        self._watchdog = Watchdog(config.stall_timeout)
        self._closed = threading.Event()
        interval = min(5.0, config.stall_timeout / 4)
        threading.Thread(target=self._watch, args=(interval,), name="watchdog", daemon=True).start()

    @property
    def model_name(self) -> str:
        """What requests call the model."""
        return self._engine.plan.name

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._engine.tokenizer

    @property
    def max_model_len(self) -> int:
        """Longest sequence in tokens, prompt and output together."""
        return self._engine.plan.limits.max_model_len

    @property
    def vocab_size(self) -> int:
        """Token ids that the model has embeddings for."""
        return self._engine.plan.model.vocab_size

    @property
    def plan(self) -> str:
        """Model, platform, memory and graphs, several lines for a person."""
        return self._engine.plan.describe()

    @property
    def default_sampling(self) -> dict[str, float | int]:
        """Sampling parameters that the model's authors recommend, from its generation_config.json."""
        stored = self._engine.plan.checkpoint.generation_config
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return {name: stored[name] for name in names if isinstance(stored.get(name), int | float)}

    @property
    def healthy(self) -> bool:
        """Whether requests can be served: it has not stopped, and it gets on with its work."""
        return self._error is None and not self._closing and not self._watchdog.stalled

    @property
    def errored(self) -> BaseException | None:
        """What stopped the engine, if something did."""
        return self._error

    def stats(self) -> EngineStats:
        """Counters and gauges of the engine; may be called from any thread."""
        return replace(self._engine.core.stats(), stalls=self._watchdog.stalls)

    def submit(self, prompt: str | Sequences[int], params: SamplingParams, *, request_id: str | None = None) -> OutputStream:
        """Start a request.

        Args:
            prompt: text, or token ids.
            params: how to sample.
            request_id: a name for it, unique among requests under way; None makes one.

        Returns:
            Its increments, to be iterated over.

        Raises:
            InvalidRequestError: the prompt or a parameter is not acceptable.
            OverloadedError: too many requests are waiting.
            EngineDeadError: the engine has stopped.
        """
        self._check_alive()
        self._loop = asyncio.get_running_loop()
        if request_id in self._streams:
            raise InvalidRequestError(
                f"request_id {request_id!r} is in use by a request that has not ended.", field="request_id", value=request_id
            )
        if params.n > self._max_queued:
            raise InvalidRequestError(
                f"n is {params.n}, and the queue holds {self._max_queued} sequences (--max-queued-requests): ask for fewer.",
                field="n",
                value=params.n,
            )
        waiting = self._engine.core.num_waiting + self._queued
        if waiting + params.n > self._max_queued:
            raise OverloadedError(
                f"{waiting} sequences are waiting, and the queue holds {self._max_queued} (--max-queued-requests). Try again later."
            )
        request = self._engine.inputs.request(prompt, params, request_id)
        self._check_queued_tokens(len(request.prompt_ids))
        stream = OutputStream(request.request_id, request.prompt_ids, lambda: self._abort(request))
        self._streams[request.request_id] = stream
        self._processor.add(request)
        self._send(_Add(request))
        return stream

    async def generate(
        self, prompt: str | Sequences[int], params: SamplingParams, *, request_id: str | None = None
    ) -> AsyncIterator[RequestOutput]:
        """Complete a prompt; leaving the iteration early aborts the request. Arguments and errors are those of `submit`."""
        stream = self.submit(prompt, params, request_id=request_id)
        try:
            async for output in stream:
                yield output
        finally:
            stream.abort()

    def trace(self) -> dict[str, Any]:
        """What the last iterations did, as an object in Chrome's trace event format, to be written as JSON."""
        return self._engine.core.trace.chrome()

    def reset_prefix_cache(self) -> None:
        """Requests that are submitted from here on reuse nothing that was computed before.

        Raises:
            EngineDeadError: the engine has stopped.
        """
        self._check_alive()
        self._send(_ResetPrefixCache())

    async def close(self) -> None:
        """Abort what runs, stop the engine's thread and give back the device's memory. May be called again."""
        with self._wake:
            self._closing = True
            self._closed.set()
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)
        for stream in list(self._streams.values()):
            stream.abort()

    def _check_alive(self) -> None:
        if self._error is not None:
            raise EngineDeadError(f"The engine has stopped after an error: {self._error}") from self._error
        if self._closing:
            raise EngineDeadError("The engine has been closed.")

    def _check_queued_tokens(self, tokens: int) -> None:
        if self._max_queued_tokens is None:
            return
        if tokens > self._max_queued_tokens:
            raise InvalidRequestError(
                f"The prompt has {tokens} tokens, and the queue holds {self._max_queued_tokens} (--max-queued-tokens): shorten it.",
                field="prompt",
                value=tokens,
            )
        waiting = self._engine.core.num_waiting_tokens + self._queued_tokens
        if waiting + tokens > self._max_queued_tokens:
            raise OverloadedError(
                f"Prompts with {waiting} tokens are waiting, the request has {tokens}, and the queue holds {self._max_queued_tokens} "
                "(--max-queued-tokens). Try again later."
            )

    def _send(self, message: _Message) -> None:
        with self._wake:
            self._inbox.append(message)
            if isinstance(message, _Add):
                self._queued += len(message.request.sequences)
                self._queued_tokens += len(message.request.prompt_ids)
            self._wake.notify()

    def _abort(self, request: Request) -> None:
        """End a request that nobody reads any more. Runs on the loop's thread, where the processor lives."""
        if self._streams.pop(request.request_id, None) is None:
            return
        self._processor.remove(request.request_id)
        for sequence in request.sequences:
            self._send(_Finish(sequence, "abort", None))

    # What follows up to _deliver runs in the engine's thread.

    def _serve(self) -> None:
        core = self._engine.core
        try:
            while True:
                with self._wake:
                    while not (self._inbox or self._closing or core.has_work):
                        self._wake.wait()
                    if self._closing:
                        return
                    messages, self._inbox = self._inbox, []
                    self._queued = self._queued_tokens = 0
                    for message in messages:
                        self._apply(message)
                if events := core.step():
                    self._post(lambda events=events: self._deliver(events))
        except BaseException as error:  # the thread's end would be silent otherwise: nothing may be left waiting for it
            log.exception("The engine has stopped after an error")
            self._error = error
            self._post(self._fail)

    def _apply(self, message: _Message) -> None:
        if isinstance(message, _Add):
            for sequence in message.request.sequences:
                self._engine.core.add(sequence)
        elif isinstance(message, _ResetPrefixCache):
            self._engine.core.reset_prefix_cache()
        else:
            self._engine.core.finish(message.sequence, message.reason, message.stop_reason)

    def _post(self, call: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            log.debug("The event loop is closed; outputs are dropped")

    # What follows runs in the watchdog's thread.

    def _watch(self, interval: float) -> None:
        core = self._engine.core
        while not self._closed.wait(interval):
            has_work = core.has_work or bool(self._inbox)
            if self._error is None and self._watchdog.look(time.monotonic(), has_work=has_work, progress=core.progress):
                stats = core.stats()
                log.error(
                    "The engine has made no progress for too long: %d running, %d waiting, %d of %d KV blocks free, after %d iterations",
                    stats.num_running,
                    stats.num_waiting,
                    stats.num_free_blocks,
                    stats.num_blocks,
                    stats.steps,
                )

    # What follows runs on the event loop's thread.

    def _deliver(self, events: list[TokenEvent]) -> None:
        processed = self._processor.process(events)
        for sequence, stop in processed.stopped:
            self._send(_Finish(sequence, "stop", stop))
        for output in processed.outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream.put(output)
                if output.finished:
                    del self._streams[output.request_id]

    def _fail(self) -> None:
        for stream in self._streams.values():
            stream.fail(EngineDeadError(f"The engine has stopped after an error: {self._error}"))
        self._streams.clear()
