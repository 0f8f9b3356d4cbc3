"""Makes text of tokens: incremental detokenization, stop strings, and the outputs that users see. No JAX.

It belongs to one thread, that of the user's side: in `AsyncLLM` the event loop's, in `LLM` the caller's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from xlaserve.engine.messages import Finish, TokenEvent
from xlaserve.engine.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from xlaserve.engine.request import Request
from xlaserve.engine.sequence import Sequence
from xlaserve.engine.stop import StopMatcher
from xlaserve.models.tokenizer import Tokenizer, TokenStream
from xlaserve.sampling.beam_search import Hypothesis
from xlaserve.sampling.scores import TokenScore

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Completion:
    sequence: Sequence
    index: int
    stream: TokenStream | None
    stops: StopMatcher | None
    num_tokens: int = 0
    cumulative_logprob: float = 0.0
    finished: bool = False


@dataclass(slots=True, eq=False)
class _Entry:
    request: Request
    completions: tuple[_Completion, ...]
    metrics: RequestMetrics
    num_cached_tokens: int = 0
    prompt_logprobs: dict[int, dict[int, Logprob]] | None = None  # by place, until they have been given


@dataclass(frozen=True, slots=True)
class Processed:
    """What came of a batch of events.

    Args:
        outputs: increments, one per request that moved.
        finishes: sequences that have ended here, by a stop string or an error, and that the engine must be told about.
    """

    outputs: list[RequestOutput]
    finishes: list[Finish]


class OutputProcessor:
    """Turns token events into increments of requests. What fails for one request ends that request, and no other.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._entries: dict[str, _Entry] = {}
        self._by_key: dict[int, tuple[_Entry, _Completion]] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    def add(self, request: Request) -> None:
        """Expect events of a request."""
        entry = _Entry(request, tuple(self._completion(sequence) for sequence in request.sequences), request.metrics)
        entry.prompt_logprobs = {} if request.sequences[0].scores_prompt else None
        self._entries[request.request_id] = entry
        for completion in entry.completions:
            self._by_key[completion.sequence.key] = entry, completion

    def remove(self, request_id: str) -> Request | None:
        """Forget a request; later events of it are dropped."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return None
        for sequence in entry.request.sequences:
            self._by_key.pop(sequence.key, None)
        return entry.request

    def process(self, events: Iterable[TokenEvent]) -> Processed:
        """Take the events of one step."""
        moved: dict[_Entry, list[CompletionOutput]] = {}
        finishes: list[Finish] = []
        for event in events:
            # A sequence that has ended here, or whose request has been removed, is known no more.
            if (found := self._by_key.get(event.key)) is None:
                continue
            entry, completion = found
            try:
                if event.prompt_scores is not None:
                    # Where they have been given already, the prompt is being computed again after a preemption.
                    if entry.prompt_logprobs is not None:
                        entry.prompt_logprobs |= {place: self._logprobs(scores) for place, scores in event.prompt_scores.items()}
                    continue
                if event.hypotheses is not None:
                    outputs, stop = self._found(completion, event.hypotheses), None
                else:
                    output, stop = _advance(completion, event)
                    outputs = [output]
                if event.scores is not None:
                    completion.cumulative_logprob += event.scores[0].logprob
                    outputs[0].logprobs = [self._logprobs(event.scores)]
                    outputs[0].cumulative_logprob = completion.cumulative_logprob
            except Exception:
                log.exception("Request %s has ended: what the engine gave for it could not be processed", entry.request.request_id)
                outputs, failed = self._fail(entry)
                moved.setdefault(entry, []).extend(outputs)
                finishes += failed
                continue
            if event.metrics is not None:
                entry.metrics = event.metrics
                if completion is entry.completions[0]:
                    entry.num_cached_tokens = event.num_cached_tokens
            if stop is not None:
                finishes.append(Finish(event.key, "stop", stop))
            if completion.finished:
                del self._by_key[event.key]
            if (known := moved.setdefault(entry, outputs)) is not outputs:
                known += outputs
        return Processed([self._output(entry, outputs) for entry, outputs in moved.items()], finishes)

    def _fail(self, entry: _Entry) -> tuple[list[CompletionOutput], list[Finish]]:
        """End what has not ended of a request, with the reason "error"."""
        open_completions = [completion for completion in entry.completions if not completion.finished]
        for completion in open_completions:
            completion.finished = True
            del self._by_key[completion.sequence.key]
        return (
            [CompletionOutput(completion.sequence.index, "", [], "error") for completion in open_completions],
            [Finish(completion.sequence.key, "error") for completion in open_completions],
        )

    def _found(self, completion: _Completion, hypotheses: list[Hypothesis]) -> list[CompletionOutput]:
        """The completions that a beam search has found."""
        params = completion.sequence.params
        completion.finished = True
        outputs: list[CompletionOutput] = []
        for index, found in enumerate(hypotheses):
            text = ""
            if params.detokenize:
                stream = self._tokenizer.stream(skip_special_tokens=params.skip_special_tokens)
                shown = found.token_ids[:-1] if found.finish_reason == "stop" else found.token_ids
                text = "".join(stream.step(token) for token in shown) + stream.flush()
            outputs.append(CompletionOutput(index, text, found.token_ids, found.finish_reason, cumulative_logprob=found.logprob))
        return outputs

    def _logprobs(self, scores: Iterable[TokenScore]) -> dict[int, Logprob]:
        return {s.token_id: Logprob(s.logprob, s.rank, self._tokenizer.token_bytes(s.token_id).decode("utf-8", "replace")) for s in scores}

    def _completion(self, sequence: Sequence) -> _Completion:
        params = sequence.params
        stream = self._tokenizer.stream(skip_special_tokens=params.skip_special_tokens) if params.detokenize else None
        stops = StopMatcher(params.stop_strings, include=params.include_stop_str_in_output) if params.stop_strings else None
        return _Completion(sequence, sequence.index, stream, stops)

    def _output(self, entry: _Entry, outputs: list[CompletionOutput]) -> RequestOutput:
        request = entry.request
        # The last output is of a completion that has not ended, in most steps.
        finished = outputs[-1].finish_reason is not None and all(completion.finished for completion in entry.completions)
        if finished:
            del self._entries[request.request_id]
        prompt_logprobs = None if entry.prompt_logprobs is None else self._take_prompt_logprobs(entry)
        return RequestOutput(
            request.request_id,
            request.prompt,
            request.prompt_ids,
            outputs,
            finished,
            entry.num_cached_tokens,
            entry.metrics,
            prompt_logprobs,
        )

    def _take_prompt_logprobs(self, entry: _Entry) -> list[dict[int, Logprob] | None] | None:
        """Those of a request whose prompt has been computed, once."""
        found, count = entry.prompt_logprobs, len(entry.request.prompt_ids)
        if found is None or len(found) < count - 1:
            return None
        entry.prompt_logprobs = None
        return [None, *(found[place] for place in range(1, count))]


def _advance(completion: _Completion, event: TokenEvent) -> tuple[CompletionOutput, str | None]:
    """One event of one completion: its increment, and the stop string that it completed, if it did."""
    token, stream, stops = event.token, completion.stream, completion.stops
    output = CompletionOutput(completion.index, "", [] if token is None else [token], event.finish_reason, event.stop_reason)
    if event.finish_reason is None and stops is None:
        # Nearly all are like this.
        if token is not None and stream is not None:
            output.text = stream.step(token)
        return output, None
    params, stop = completion.sequence.params, None
    if token is not None:
        completion.num_tokens += 1
        # The token that ends a text is no part of it: neither the model's end of sequence nor a stop id, unless asked for.
        hidden = event.finish_reason == "stop" and not params.include_stop_str_in_output
        if stream is not None and not hidden:
            output.text = stream.step(token)
            if stops is not None:
                output.text, stop = stops.feed(output.text, match=completion.num_tokens > params.min_tokens)
    if stop is not None:
        output.finish_reason, output.stop_reason = "stop", stop
    elif output.finish_reason is not None and stream is not None:
        tail, found = stream.flush(), None
        if stops is not None:
            tail, found = stops.feed(tail)
        output.text += tail
        if found is not None:
            output.finish_reason, output.stop_reason = "stop", found
        elif stops is not None:
            output.text += stops.flush()
    completion.finished = output.finish_reason is not None
    return output, stop
