"""The engine's work for one HTTP request: every prompt submitted, outputs merged, tokens counted, latencies observed.

Choices are numbered as OpenAI does: completion `i` of prompt `p` is choice `p * n + i`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from xlaserve.engine.outputs import CompletionOutput, Logprob, RequestOutput
from xlaserve.errors import EngineDeadError, InvalidRequestError, XlaserveError
from xlaserve.sampling.beam_search import GenerationParams
from xlaserve.server.beams import in_request_terms
from xlaserve.server.engine import Engine, TokenStream
from xlaserve.server.errors import GenerationFailedError, ShuttingDownError
from xlaserve.server.metrics import Metrics
from xlaserve.server.observers import OBSERVERS, Begun, Ended

PromptLogprobs = list[dict[int, Logprob] | None]
"""For each prompt token; None for the first."""


@dataclass(slots=True)
class Choice:
    """What is known of one choice so far; what stands after `last_token_time` is filled by `Generation.collect`."""

    index: int
    tokens: int = 0
    last_token_time: float | None = None
    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[dict[int, Logprob]] = field(default_factory=list[dict[int, Logprob]])
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new in one choice. `prompt` is the position of its prompt in the request."""

    prompt: int
    choice: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]]
    finish_reason: str | None
    stop_reason: int | str | None


class Generation:
    """Submits on construction; consumed once, through `deltas` or `collect`.

    Args:
        engine: ready.
        metrics: gets the latencies.
        prompts: token ids of each prompt.
        params: for each prompt; all have the same `n`.
        request_id: unique; prompts get it with their number.
        scores_only: the prompts' log probabilities are all that is wanted: the one token that the engine generates for each is dropped.

    Raises:
        InvalidRequestError, OverloadedError, EngineDeadError: from the engine; nothing stays submitted then.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        prompts: Sequence[list[int]],
        params: Sequence[GenerationParams],
        request_id: str,
        *,
        scores_only: bool = False,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._params = params
        self._scores_only = scores_only
        self._arrival = time.monotonic()
        self._first_scheduled: float | None = None
        self._first_token: float | None = None
        self._reasons: dict[int, str] = {}
        self._prompt_lengths = [len(ids) for ids in prompts]
        self._unfinished = len(prompts)
        self._cached_tokens = [0] * len(prompts)
        self._n = params[0].n
        self.choices = [Choice(index) for index in range(self._n * len(prompts))]
        self.prompt_logprobs: list[PromptLogprobs | None] = [None] * len(prompts)
        self._held: list[list[Delta]] | None = [[] for _ in prompts] if params[0].prompt_logprobs is not None else None
        self._streams: list[TokenStream] = []
        self._accepted = False
        try:
            for number, (ids, options) in enumerate(zip(prompts, params, strict=True)):
                self._streams.append(engine.submit(ids, options, request_id=f"{request_id}-{number}"))
        except InvalidRequestError as error:
            self.abort()
            raise in_request_terms(error) from error
        except BaseException:
            self.abort()
            raise
        self._observers = OBSERVERS.get()
        self._begun = Begun(request_id, engine.model_name, prompts, params[0], engine.tokenizer.decode)
        self._accepted = True
        for observer in self._observers:
            observer.began(self._begun)

    def abort(self) -> None:
        """Gives up what still runs and frees its KV blocks; harmless when all has ended."""
        for stream in self._streams:
            stream.abort()
        self._end("abort")

    async def deltas(self) -> AsyncGenerator[list[Delta]]:
        """What is new, as the engine produces it; ends when every choice has ended.

        Raises:
            ShuttingDownError, GenerationFailedError, EngineDeadError: the engine ended a choice early.
        """
        async with aclosing(self._outputs()) as outputs:
            async for prompt, output in outputs:
                now = time.monotonic()
                self._cached_tokens[prompt] = output.num_cached_tokens
                deltas = [self._delta(prompt, moved, now) for moved in output.outputs]
                if self._held is not None:
                    # What a choice says of its prompt comes before what it says of its own tokens.
                    self.prompt_logprobs[prompt] = output.prompt_logprobs or self.prompt_logprobs[prompt]
                    deltas = self._held[prompt] + deltas
                    wait = self.prompt_logprobs[prompt] is None and not output.finished
                    self._held[prompt], deltas = (deltas, []) if wait else ([], deltas)
                if output.finished:
                    self._unfinished -= 1
                    self._observe_end(prompt, output, now)
                yield deltas
        if self._unfinished:
            raise self._cut_short()

    async def collect(self) -> list[Choice]:
        """All choices, complete."""
        parts: list[list[str]] = [[] for _ in self.choices]
        async with aclosing(self.deltas()) as steps:
            async for deltas in steps:
                for delta in deltas:
                    parts[delta.choice].append(delta.text)
                    self.choices[delta.choice].token_ids += delta.token_ids
                    self.choices[delta.choice].logprobs += delta.logprobs
                    if delta.finish_reason is not None:
                        self.choices[delta.choice].finish_reason = delta.finish_reason
                        self.choices[delta.choice].stop_reason = delta.stop_reason
        for choice, texts in zip(self.choices, parts, strict=True):
            choice.text = "".join(texts)
        return self.choices

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object for the request as a whole; each prompt counts once, whatever `n`."""
        return _usage(sum(self._prompt_lengths), sum(choice.tokens for choice in self.choices), sum(self._cached_tokens))

    def choice_usage(self, index: int) -> dict[str, Any]:
        """The same for one choice so far."""
        prompt = index // self._n
        return _usage(self._prompt_lengths[prompt], self.choices[index].tokens, self._cached_tokens[prompt])

    async def _outputs(self) -> AsyncGenerator[tuple[int, RequestOutput]]:
        try:
            if len(self._streams) == 1:
                async for output in self._streams[0]:
                    yield 0, output
                return
            async with aclosing(self._merged()) as outputs:
                async for pair in outputs:
                    yield pair
        except Exception:
            self._end("error")
            raise

    async def _merged(self) -> AsyncGenerator[tuple[int, RequestOutput]]:
        # Bounded, so that what a slow client has not read waits in the engine's streams, which the model length bounds.
        merged: asyncio.Queue[tuple[int, RequestOutput] | Exception | None] = asyncio.Queue(maxsize=len(self._streams))
        pumps = [asyncio.create_task(_pump(number, stream, merged)) for number, stream in enumerate(self._streams)]
        try:
            running = len(pumps)
            while running:
                item = await merged.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield item
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    def _delta(self, prompt: int, moved: CompletionOutput, now: float) -> Delta:
        if moved.finish_reason == "error":
            self._end("error")
            raise GenerationFailedError("The engine failed on this request; others are not affected.")
        choice = self.choices[prompt * self._n + moved.index]
        if self._scores_only:
            if moved.finish_reason is not None:
                self._reasons[choice.index] = "length"
            return Delta(prompt, choice.index, "", [], [], moved.finish_reason and "length", None)
        new = len(moved.token_ids)
        if new:
            if choice.last_token_time is None:
                self._first_token = self._first_token or now
                if moved.index == 0:
                    self._metrics.time_to_first_token.observe(now - self._arrival)
            else:
                self._metrics.inter_token_latency.observe((now - choice.last_token_time) / new, new)
            choice.last_token_time = now
            choice.tokens += new
        if moved.finish_reason is not None:
            self._reasons[choice.index] = moved.finish_reason
        return Delta(prompt, choice.index, moved.text, moved.token_ids, moved.logprobs or [], moved.finish_reason, moved.stop_reason)

    def _cut_short(self) -> XlaserveError:
        if self._engine.errored is not None:
            self._end("error")
            return EngineDeadError("The engine has stopped after an internal failure.")
        return ShuttingDownError("The request was aborted because the server is shutting down; send it again elsewhere or later.")

    def _observe_end(self, prompt: int, output: RequestOutput, now: float) -> None:
        metrics, times = self._metrics, output.metrics
        counts = [choice.tokens for choice in self.choices[prompt * self._n : (prompt + 1) * self._n]]
        metrics.e2e_latency.observe(now - self._arrival)
        metrics.prompt_tokens.observe(self._prompt_lengths[prompt])
        metrics.generation_tokens.observe(sum(counts))
        metrics.max_generation_tokens.observe(max(counts))
        metrics.params_n.observe(self._n)
        if (limit := self._params[prompt].max_tokens) is not None:
            metrics.params_max_tokens.observe(limit)
        scheduled, first = times.first_scheduled_time, times.first_token_time
        if scheduled is not None:
            self._first_scheduled = min(scheduled, self._first_scheduled or scheduled)
            metrics.queue_time.observe(scheduled - times.arrival_time)
            metrics.inference_time.observe(now - scheduled)
            if first is not None:
                metrics.prefill_time.observe(first - scheduled)
        if first is not None:
            metrics.decode_time.observe(now - first)
            if max(counts) > 1:
                metrics.time_per_output_token.observe((now - first) / (max(counts) - 1))
        if not self._unfinished:
            self._end("abort")

    def _end(self, reason: str) -> None:
        """It is over, and so are, for this reason, the choices that have not ended by themselves. Counted once."""
        if not self._accepted:
            return
        self._accepted = False
        reasons = tuple(self._reasons.get(choice.index, reason) for choice in self.choices)
        self._metrics.finished.update(reasons)
        if not self._observers:
            return
        now, arrival, scheduled, first = time.monotonic(), self._arrival, self._first_scheduled, self._first_token
        ended = Ended(
            completion_tokens=sum(choice.tokens for choice in self.choices),
            cached_tokens=sum(self._cached_tokens),
            finish_reasons=reasons,
            seconds=now - arrival,
            queue=None if scheduled is None else scheduled - arrival,
            first_token=None if first is None else first - arrival,
            prefill=None if scheduled is None or first is None else first - scheduled,
            decode=None if first is None else now - first,
        )
        for observer in self._observers:
            observer.ended(self._begun, ended)


async def _pump(number: int, stream: TokenStream, merged: asyncio.Queue[tuple[int, RequestOutput] | Exception | None]) -> None:
    try:
        async for output in stream:
            await merged.put((number, output))
    except Exception as error:
        await merged.put(error)
    else:
        await merged.put(None)


def _usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
