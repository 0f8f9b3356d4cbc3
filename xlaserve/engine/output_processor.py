"""Makes text of tokens: incremental detokenization, stop strings, and the outputs that users see. No JAX.

It belongs to one thread, that of the user's side: in `AsyncLLM` the event loop's, in `LLM` the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from xlaserve.engine.core import TokenEvent
from xlaserve.engine.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from xlaserve.engine.sequence import Sequence
from xlaserve.engine.stop import StopMatcher
from xlaserve.models.tokenizer import Tokenizer, TokenStream
from xlaserve.sampling.scores import TokenScore


@dataclass(slots=True)
class _Completion:
    sequence: Sequence
    stream: TokenStream | None
    stops: StopMatcher
    num_tokens: int = 0
    cumulative_logprob: float = 0.0
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A request under way: what the user gave, and its sequences."""

    request_id: str
    prompt: str | None
    prompt_ids: list[int]
    sequences: tuple[Sequence, ...]
    metrics: RequestMetrics


@dataclass(frozen=True, slots=True)
class Processed:
    """What came of a batch of events.

    Args:
        outputs: increments, one per request that moved.
        stopped: sequences that ended at a stop string, with the string; the engine does not know yet.
    """

    outputs: list[RequestOutput]
    stopped: list[tuple[Sequence, str]]


class OutputProcessor:
    """Turns token events into increments of requests.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._prompt_logprobs: dict[str, dict[int, dict[int, Logprob]]] = {}
        self._requests: dict[str, tuple[Request, list[_Completion]]] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def add(self, request: Request) -> None:
        """Expect events of a request."""
        if request.sequences[0].scores_prompt:
            self._prompt_logprobs[request.request_id] = {}
        self._requests[request.request_id] = request, [self._completion(sequence) for sequence in request.sequences]

    def remove(self, request_id: str) -> Request | None:
        """Forget a request; later events of it are dropped."""
        self._prompt_logprobs.pop(request_id, None)
        found = self._requests.pop(request_id, None)
        return found[0] if found else None

    def process(self, events: Iterable[TokenEvent]) -> Processed:
        """Take the events of one step."""
        moved: dict[str, list[CompletionOutput]] = {}
        stopped: list[tuple[Sequence, str]] = []
        for event in events:
            sequence = event.sequence
            if sequence.request_id not in self._requests:
                continue
            completion = self._requests[sequence.request_id][1][sequence.index]
            # A name may be in use again while events of its last owner are still on their way.
            if completion.finished or completion.sequence is not sequence:
                continue
            if event.prompt_scores is not None:
                # Where they have been given already, the prompt is being computed again after a preemption.
                if (found := self._prompt_logprobs.get(sequence.request_id)) is not None:
                    found |= {place: self._logprobs(scores) for place, scores in event.prompt_scores.items()}
                continue
            output, stop = _advance(completion, event)
            if event.scores is not None:
                completion.cumulative_logprob += event.scores[0].logprob
                output.logprobs = [self._logprobs(event.scores)]
                output.cumulative_logprob = completion.cumulative_logprob
            if stop is not None:
                stopped.append((sequence, stop))
            moved.setdefault(sequence.request_id, []).append(output)
        return Processed([self._output(request_id, outputs) for request_id, outputs in moved.items()], stopped)

    def _logprobs(self, scores: Iterable[TokenScore]) -> dict[int, Logprob]:
        return {s.token_id: Logprob(s.logprob, s.rank, self._tokenizer.token_bytes(s.token_id).decode("utf-8", "replace")) for s in scores}

    def _completion(self, sequence: Sequence) -> _Completion:
        params = sequence.params
        stream = self._tokenizer.stream(skip_special_tokens=params.skip_special_tokens) if params.detokenize else None
        return _Completion(sequence, stream, StopMatcher(params.stop_strings, include=params.include_stop_str_in_output))

    def _output(self, request_id: str, outputs: list[CompletionOutput]) -> RequestOutput:
        request, completions = self._requests[request_id]
        finished = all(completion.finished for completion in completions)
        prompt_logprobs = self._take_prompt_logprobs(request)
        if finished:
            self.remove(request_id)
        return RequestOutput(
            request_id=request_id,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_ids,
            outputs=outputs,
            finished=finished,
            num_cached_tokens=request.sequences[0].num_cached_tokens or 0,
            metrics=request.metrics,
            prompt_logprobs=prompt_logprobs,
        )

    def _take_prompt_logprobs(self, request: Request) -> list[dict[int, Logprob] | None] | None:
        """Those of a request whose prompt has been computed, once."""
        found = self._prompt_logprobs.get(request.request_id)
        if found is None or len(found) < len(request.prompt_ids) - 1:
            return None
        del self._prompt_logprobs[request.request_id]
        return [None, *(found[place] for place in range(1, len(request.prompt_ids)))]


def _advance(completion: _Completion, event: TokenEvent) -> tuple[CompletionOutput, str | None]:
    """One event of one completion: its increment, and the stop string that it completed, if it did."""
    output = CompletionOutput(completion.sequence.index, "", [], event.finish_reason, event.stop_reason)
    stop = None
    if event.token is not None:
        output.token_ids.append(event.token)
        completion.num_tokens += 1
        # The token that ends a text is no part of it: neither the model's end of sequence nor a stop id, unless asked for.
        hidden = event.finish_reason == "stop" and not completion.sequence.params.include_stop_str_in_output
        if completion.stream is not None and not hidden:
            text = completion.stream.step(event.token)
            output.text, stop = completion.stops.feed(text, match=completion.num_tokens > completion.sequence.params.min_tokens)
    if stop is not None:
        output.finish_reason, output.stop_reason = "stop", stop
    elif output.finish_reason is not None and completion.stream is not None:
        tail, found = completion.stops.feed(completion.stream.flush())
        output.text += tail
        if found is None:
            output.text += completion.stops.flush()
        else:
            output.finish_reason, output.stop_reason = "stop", found
    completion.finished = output.finish_reason is not None
    return output, stop
