"""What the user's side is told of an iteration, made of the engine's sequences. No JAX."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xlaserve.engine.decision import ContextStep
from xlaserve.engine.messages import TokenEvent
from xlaserve.engine.sequence import Sequence
from xlaserve.sampling.beam_search import Hypothesis
from xlaserve.sampling.scores import TokenScore, read_scores


def token_event(sequence: Sequence, token: int | None, scores: list[TokenScore] | None) -> TokenEvent:
    """What the user's side is told about a new token, or an end without one; timing goes with the first and the last of a sequence."""
    reason = sequence.finish_reason
    if reason is None and len(sequence.output_ids) > 1:
        return TokenEvent(sequence.key, token, scores=scores)
    return TokenEvent(sequence.key, token, reason, sequence.stop_reason, scores, replace(sequence.metrics), sequence.num_cached_tokens or 0)


def search_event(first: Sequence, hypotheses: list[Hypothesis]) -> TokenEvent:
    """What the user's side is told when a beam search ends; before that, nothing."""
    return TokenEvent(
        first.key,
        None,
        first.finish_reason,
        metrics=replace(first.metrics),
        num_cached_tokens=first.num_cached_tokens or 0,
        hypotheses=hypotheses,
    )


def prompt_score_events(step: ContextStep, places: NDArray[np.int32]) -> list[TokenEvent]:
    """Events of the chunks that score their prompts, from int32 `[rows, length, SCORE_WIDTH]`; one row where the chunks share it."""
    events: list[TokenEvent] = []
    shared = 0
    for at, chunk in enumerate(step.chunks):
        row = places[0, shared:] if step.bucket.shared else places[at]
        shared += chunk.length
        sequence = chunk.sequence
        prompt, top = sequence.prompt_ids, sequence.params.prompt_logprobs
        if top is None or not sequence.scores_prompt:
            continue
        ends = range(chunk.start + 1, min(chunk.start + chunk.length + 1, len(prompt)))
        if found := {place: read_scores(row[place - chunk.start - 1], prompt[place], top) for place in ends}:
            events.append(TokenEvent(sequence.key, None, prompt_scores=found))
    return events
