"""Drives an engine by hand, so that requests arrive, and are aborted, at chosen iterations: a crowd that is the same in every run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from xlaserve import LLM, CompletionOutput, RequestOutput, SamplingParams
from xlaserve.engine.output_stream import add_increment
from xlaserve.engine.request import Request


@dataclass(frozen=True, slots=True)
class Wish:
    """A request: its prompt and how to sample."""

    prompt: list[int]
    params: SamplingParams


def disturbed(llm: LLM, wishes: Sequence[Wish], noise: Sequence[Wish], seed: int) -> list[RequestOutput]:
    """What `wishes` give where all arrive at random iterations among `noise`, which is aborted at random iterations.

    Args:
        llm: an idle engine.
        wishes: whose outputs count.
        noise: what comes and goes meanwhile; some of it before it is admitted, some of it after its end.
        seed: of arrivals and aborts.

    Returns:
        The outputs of `wishes`, in order.
    """
    rng = random.Random(seed)
    core, inputs, processor = llm._core, llm._inputs, llm._processor  # pyright: ignore[reportPrivateUsage]
    requests = [inputs.request(wish.prompt, wish.params, None) for wish in (*wishes, *noise)]
    arrivals = [(rng.randrange(60), number) for number in range(len(requests))]
    aborts = [(arrivals[number][0] + rng.randrange(40), number) for number in range(len(wishes), len(requests))]
    outputs = {request.request_id: _empty(request) for request in requests}
    by_key = {sequence.key: sequence for request in requests for sequence in request.sequences}
    iteration = 0
    while arrivals or aborts or core.has_work:
        for _, number in _due(arrivals, iteration):
            processor.add(requests[number])
            for sequence in requests[number].sequences:
                core.add(sequence)
        for _, number in _due(aborts, iteration):
            processor.remove(requests[number].request_id)
            for sequence in requests[number].sequences:
                core.finish(sequence, "abort")
        processed = processor.process(core.step())
        for finish in processed.finishes:
            core.finish(by_key[finish.key], finish.reason, finish.stop_reason)
        for output in processed.outputs:
            total = outputs[output.request_id]
            total.finished, total.prompt_logprobs = output.finished, output.prompt_logprobs or total.prompt_logprobs
            for moved in output.outputs:
                add_increment(total.outputs[moved.index], moved)
        iteration += 1
    return [outputs[request.request_id] for request in requests[: len(wishes)]]


def _due(plan: list[tuple[int, int]], iteration: int) -> list[tuple[int, int]]:
    """Take out of `plan` what is to happen in an iteration."""
    due = [entry for entry in plan if entry[0] == iteration]
    plan[:] = [entry for entry in plan if entry[0] != iteration]
    return due


def _empty(request: Request) -> RequestOutput:
    outputs = [CompletionOutput(sequence.index, "", []) for sequence in request.sequences]
    return RequestOutput(request.request_id, request.prompt, request.prompt_ids, outputs, False, 0, request.metrics)
