"""The user's side of an engine, on one event loop: validate, tokenize, submit; detokenize, find stop strings, stream. No JAX."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from collections.abc import Sequence as Sequences
from dataclasses import replace
from typing import Any

import msgspec

from xlaserve.engine.config import EngineConfig
from xlaserve.engine.connection import Connection
from xlaserve.engine.grammar_check import GrammarCheck, Vocabulary
from xlaserve.engine.input_processor import InputProcessor
from xlaserve.engine.messages import EngineInfo, Finish, TokenEvent
from xlaserve.engine.modes import PauseMode, SleepLevel, check_level, check_mode
from xlaserve.engine.output_processor import OutputProcessor
from xlaserve.engine.output_stream import OutputStream
from xlaserve.engine.outputs import EngineStats, RequestOutput
from xlaserve.engine.report import EngineReport
from xlaserve.engine.request import Request
from xlaserve.engine.trace import Recorded
from xlaserve.engine.watchdog import Watchdog
from xlaserve.errors import EngineDeadError, InvalidRequestError, OverloadedError, XlaserveError
from xlaserve.models.tokenizer import Tokenizer
from xlaserve.sampling.beam_search import GenerationParams
from xlaserve.sampling.params import SamplingParams
from xlaserve.sampling.structured import StructuredOutput

log = logging.getLogger(__name__)


class FrontEnd:
    """A model that serves many requests at once. `submit` and `generate` belong to one event loop.

    Args:
        connection: to the engine, which is ready.
        info: about it.
        tokenizer: of its model.
        config: what the engine was started with.
    """

    def __init__(self, connection: Connection, info: EngineInfo, tokenizer: Tokenizer, config: EngineConfig) -> None:
        self._connection = connection
        self._info = info
        self._tokenizer = tokenizer
        self._max_queued = config.max_queued_requests
        self._max_queued_tokens = config.max_queued_tokens
        self._inputs = InputProcessor(tokenizer, info, seed=config.seed, by_priority=config.scheduling_policy == "priority")
        self._grammars = GrammarCheck(
            Vocabulary(info.checkpoint, info.vocab_size, info.eos_ids, float(config.grammar_timeout), info.load_format)
        )
        self._processor = OutputProcessor(tokenizer)
        self._streams: dict[str, OutputStream] = {}
        self._closing = False
        self._error: XlaserveError | None = None
        self._failed = asyncio.Event()
        self._watchdog = Watchdog(config.stall_timeout)
        self._closed = threading.Event()
        connection.listen(self._deliver, self._fail)
        interval = min(5.0, config.stall_timeout / 4)
        threading.Thread(target=self._watch, args=(interval,), name="watchdog", daemon=True).start()

    @property
    def model_name(self) -> str:
        """What requests call the model."""
        return self._info.model_name

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def max_model_len(self) -> int:
        """Longest sequence in tokens, prompt and output together."""
        return self._info.max_model_len

    @property
    def vocab_size(self) -> int:
        """Token ids that the model has embeddings for."""
        return self._info.vocab_size

    @property
    def info(self) -> EngineInfo:
        """What is known of the engine since its start."""
        return self._info

    @property
    def max_num_seqs(self) -> int:
        """Sequences that it computes at once."""
        return self._info.max_num_seqs

    @property
    def plan(self) -> str:
        """Model, platform, memory and graphs, several lines for a person."""
        return self._info.plan

    @property
    def default_sampling(self) -> dict[str, float | int]:
        """Sampling parameters that the model's authors recommend, from its generation_config.json."""
        return self._info.default_sampling

    @property
    def healthy(self) -> bool:
        """Whether requests can be served: the engine has not stopped, and it gets on with its work."""
        return self._error is None and not self._closing and not self._watchdog.stalled

    @property
    def errored(self) -> BaseException | None:
        """What stopped the engine, if something did."""
        return self._error

    async def wait_failed(self) -> None:
        """Return when the engine has stopped after an error, which `errored` then tells."""
        await self._failed.wait()

    def stats(self) -> EngineStats:
        """Counters and gauges of the engine; may be called from any thread."""
        return replace(self._connection.stats(), stalls=self._watchdog.stalls)

    async def check(self, structured: StructuredOutput) -> None:
        """Return where a form of output can be used. To be awaited before `submit` gets it; `generate` does so itself.

        Raises:
            InvalidRequestError: it makes no sense, or is too complex.
        """
        self._check_alive()
        await self._grammars.check(structured)

    def submit(self, prompt: str | Sequences[int], params: GenerationParams, *, request_id: str | None = None) -> OutputStream:
        """Start a request.

        Args:
            prompt: text, or token ids.
            params: how to sample; or how to search, which gives nothing until it ends.
            request_id: a name for it, unique among requests under way; None makes one.

        Returns:
            Its increments, to be iterated over.

        Raises:
            InvalidRequestError: the prompt or a parameter is not acceptable.
            OverloadedError: too many requests are waiting.
            EngineDeadError: the engine has stopped.
        """
        self._check_alive()
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
        waiting = self._connection.num_waiting
        if waiting + params.n > self._max_queued:
            raise OverloadedError(
                f"{waiting} sequences are waiting, and the queue holds {self._max_queued} (--max-queued-requests). Try again later."
            )
        request = self._inputs.request(prompt, params, request_id)
        self._check_queued_tokens(len(request.prompt_ids))
        stream = OutputStream(request.request_id, request.prompt_ids, lambda: self._abort(request))
        self._connection.add(request)
        self._processor.add(request)
        self._streams[request.request_id] = stream
        return stream

    async def generate(
        self, prompt: str | Sequences[int], params: GenerationParams, *, request_id: str | None = None
    ) -> AsyncIterator[RequestOutput]:
        """Complete a prompt; leaving the iteration early aborts the request. Arguments and errors are those of `submit`."""
        if isinstance(params, SamplingParams) and params.structured is not None:
            await self.check(params.structured)
        stream = self.submit(prompt, params, request_id=request_id)
        try:
            async for output in stream:
                yield output
        finally:
            stream.abort()

    @property
    def is_paused(self) -> bool:
        """Whether nothing is computed until `resume` or `wake`; always where it sleeps."""
        return self._connection.stats().paused

    @property
    def is_sleeping(self) -> bool:
        """Whether the device's memory has been given back."""
        return self._connection.stats().sleep_level > 0

    async def pause(self, mode: PauseMode = "keep") -> None:
        """Compute nothing from here on, until `resume`. New requests are accepted and wait; requests can be aborted as ever.

        Args:
            mode: what becomes of the requests that run or wait: "keep" leaves them as they are, until `resume`; "abort" ends them with
                that reason; "wait" lets them end first, and takes until then.

        Raises:
            InvalidRequestError: there is no such mode.
            EngineStateError: what "wait" waited for cannot end, since another call stopped or resumed the engine, or it sleeps.
            EngineDeadError: the engine has stopped.
        """
        check_mode(mode)
        await self._call("pause", mode=mode)

    async def resume(self) -> None:
        """Go on after a pause.

        Raises:
            EngineStateError: the engine sleeps.
            EngineDeadError: it has stopped.
        """
        await self._call("resume")

    async def sleep(self, level: SleepLevel = 1) -> int:
        """Pause, and give back the device's memory until `wake`. Requests that run go on after it where they were.

        Args:
            level: 1 gives back KV and slots; 2 the weights too.

        Returns:
            Bytes that were given back.

        Raises:
            InvalidRequestError: there is no such level.
            EngineDeadError: the engine has stopped.
        """
        check_level(level)
        return await self._call("sleep", level=level)

    async def wake(self) -> None:
        """Get back what `sleep` gave, and go on.

        Raises:
            CheckpointError: the weights cannot be read any more; the engine sleeps on.
            CallFailedError: the device has no room; likewise.
            EngineDeadError: the engine has stopped.
        """
        await self._call("wake")

    async def reset_prefix_cache(self) -> None:
        """Requests that are submitted from here on reuse nothing that was computed before.

        Raises:
            EngineDeadError: the engine has stopped.
        """
        await self._call("reset_prefix_cache")

    async def trace(self) -> dict[str, Any]:
        """What the last iterations did, as an object in Chrome's trace event format, to be written as JSON.

        Raises:
            EngineDeadError: the engine has stopped.
        """
        recorded = msgspec.convert(await self._call("trace"), Recorded)
        return await asyncio.to_thread(recorded.chrome)

    async def report(self) -> EngineReport:
        """Who is computed, who waits, and how each graph is used.

        Raises:
            EngineDeadError: the engine has stopped.
        """
        return msgspec.convert(await self._call("report"), EngineReport)

    async def start_profile(self, directory: str) -> None:
        """Record what the engine and its device do, until `stop_profile` writes it into a directory.

        Raises:
            EngineStateError: a profile is being recorded.
            EngineDeadError: the engine has stopped.
        """
        await self._call("start_profile", directory=directory)

    async def stop_profile(self) -> None:
        """Write what has been recorded; takes a while.

        Raises:
            EngineStateError: nothing is being recorded.
            CallFailedError: it cannot be written.
            EngineDeadError: the engine has stopped.
        """
        await self._call("stop_profile")

    async def close(self) -> None:
        """Abort what runs, and end the engine. May be called again."""
        self._closing = True
        self._closed.set()
        await self._connection.close()
        await asyncio.to_thread(self._grammars.close)
        for stream in list(self._streams.values()):
            stream.abort()

    async def _call(self, method: str, **arguments: Any) -> Any:
        self._check_alive()
        return await self._connection.call(method, **arguments)

    def _check_alive(self) -> None:
        if self._error is not None:
            raise EngineDeadError(str(self._error)) from self._error
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
        waiting = self._connection.num_waiting_tokens
        if waiting + tokens > self._max_queued_tokens:
            raise OverloadedError(
                f"Prompts with {waiting} tokens are waiting, the request has {tokens}, and the queue holds {self._max_queued_tokens} "
                "(--max-queued-tokens). Try again later."
            )

    def _abort(self, request: Request) -> None:
        """End a request that nobody reads any more."""
        if self._streams.pop(request.request_id, None) is None:
            return
        self._processor.remove(request.request_id)
        for sequence in request.sequences:
            self._connection.finish(Finish(sequence.key, "abort"))

    def _watch(self, interval: float) -> None:
        """In a thread of its own: an engine that gets nowhere cannot be trusted to say so."""
        while not self._closed.wait(interval) and self._error is None:
            stats = self._connection.stats()
            progress = stats.steps + stats.generation_tokens
            has_work = bool(self._streams) and not stats.paused
            if self._watchdog.look(time.monotonic(), has_work=has_work, progress=progress):
                log.error(
                    "The engine has made no progress for too long: %d running, %d waiting, %d of %d KV blocks free, after %d iterations",
                    stats.num_running,
                    stats.num_waiting,
                    stats.num_free_blocks,
                    stats.num_blocks,
                    stats.steps,
                )

    def _deliver(self, events: list[TokenEvent]) -> None:
        processed = self._processor.process(events)
        for finish in processed.finishes:
            self._connection.finish(finish)
        for output in processed.outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream.put(output)
                if output.finished:
                    del self._streams[output.request_id]

    def _fail(self, error: XlaserveError) -> None:
        self._error = error
        self._failed.set()
        for stream in self._streams.values():
            stream.fail(EngineDeadError(str(error)))
        self._streams.clear()
