"""The engine's heart: schedule, dispatch, and read what the step before sampled, one iteration at a time.

The host decides iteration N + 1 while the device computes N: sampled tokens stay on the device, and the host reads them one step late.
Everything that reaches it has been validated; it belongs to one thread.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from xlaserve.buckets.compile_events import COMPILE_EVENTS
from xlaserve.buckets.graphs import StepOutput
from xlaserve.buckets.ladder import Bucket
from xlaserve.engine.batch import Batch, BatchBuilder
from xlaserve.engine.outputs import EngineStats, FinishReason
from xlaserve.engine.runner import Runner, read
from xlaserve.engine.scheduler import ContextStep, Decision, Scheduler
from xlaserve.engine.sequence import Sequence
from xlaserve.paged.block_pool import BlockPool
from xlaserve.sampling.scores import TokenScore, read_scores


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step of one sequence, for whoever makes text of it.

    Args:
        sequence: the sequence; only its identity and metrics may be read outside the engine's thread.
        token: the new token, None where there is none.
        finish_reason: set on the sequence's last event.
        stop_reason: the stop id that ended it, if one did.
        scores: of the token and the most likely ones, where the sequence asks for log probabilities.
        prompt_scores: the same for prompt tokens, by their place; in events of their own, without a token, before the first token.
    """

    sequence: Sequence
    token: int | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    scores: list[TokenScore] | None = None
    prompt_scores: dict[int, list[TokenScore]] | None = None


class EngineCore:
    """Runs iterations.

    Args:
        scheduler: decides them.
        runner: computes them.
        pool: the KV blocks.
        max_num_seqs: number of sequence slots.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, pool: BlockPool, max_num_seqs: int) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._pool = pool
        self._batches = BatchBuilder(scheduler.tables, max_num_seqs)
        self._unread: list[tuple[Decision, list[StepOutput]]] = []
        self._stats = EngineStats(num_blocks=pool.capacity)
        self._compiled_before = COMPILE_EVENTS.count

    @property
    def has_work(self) -> bool:
        """Whether there is anything to schedule or to read."""
        return self._scheduler.has_work or bool(self._unread)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._scheduler.waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of the prompts in the queue."""
        return self._scheduler.waiting_tokens

    def add(self, sequence: Sequence) -> None:
        """Accept a validated sequence."""
        self._scheduler.add(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason, stop_reason: str | None = None) -> None:
        """End a sequence from outside: aborted, or a stop string was found in its text. Without effect on one that has ended."""
        self._scheduler.finish(sequence, reason, stop_reason)

    def reset_prefix_cache(self) -> None:
        """Let nothing that has been computed so far be shared with what comes."""
        self._scheduler.reset_prefix_cache()

    def step(self) -> list[TokenEvent]:
        """Dispatch the next iteration, if there is one, and read the one before it."""
        decision = self._scheduler.schedule()
        if decision is not None:
            self._dispatch(decision)
        if len(self._unread) > (decision is not None):
            return self._read(*self._unread.pop(0))
        return []

    def stats(self) -> EngineStats:
        """A snapshot; may be called from any thread."""
        return replace(
            self._stats,
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            num_free_blocks=self._pool.num_free,
            preemptions=self._scheduler.preemptions,
            prefix_cache_queries=self._scheduler.prefix_queries,
            prefix_cache_hits=self._scheduler.prefix_hits,
            finished=dict(self._scheduler.finished),
            compile_events=COMPILE_EVENTS.count - self._compiled_before,
        )

    def _dispatch(self, decision: Decision) -> None:
        outputs: list[StepOutput] = []
        places = tokens = 0
        if decision.generate is not None:
            outputs.append(self._run(decision.generate.bucket, self._batches.generate(decision.generate)))
            places += decision.generate.bucket.tokens
            tokens += len(decision.generate.sequences)
        if decision.context is not None:
            outputs.append(self._run(decision.context.bucket, self._batches.context(decision.context)))
            places += decision.context.bucket.tokens
            tokens += sum(chunk.length for chunk in decision.context.chunks)
        self._unread.append((decision, outputs))
        stats, running, size = self._stats, self._scheduler.running, self._pool.block_size
        held = sum(len(s.block_ids) for s in running)
        allocated = self._pool.capacity - self._pool.num_free
        self._stats = replace(
            stats,
            steps=stats.steps + 1,
            scheduled_tokens=stats.scheduled_tokens + tokens,
            padded_tokens=stats.padded_tokens + places - tokens,
            prompt_tokens=stats.prompt_tokens + _prompt_tokens(decision),
            # A shared block counts once, in both; all its places hold a token.
            allocated_token_slots=stats.allocated_token_slots + allocated * size,
            used_token_slots=stats.used_token_slots + sum(s.num_computed for s in running) - (held - allocated) * size,
        )

    def _run(self, bucket: Bucket, batch: Batch) -> StepOutput:
        for sequence in self._batches.take_seated():
            self._runner.seat(sequence)
        return self._runner.run(bucket, batch)

    def _read(self, decision: Decision, outputs: list[StepOutput]) -> list[TokenEvent]:
        events: list[TokenEvent] = []
        now = time.monotonic()
        prompts: list[TokenEvent] = []
        for output, rows in zip(outputs, decision.rows, strict=True):
            if decision.context is not None and output is outputs[-1]:
                prompts = _prompt_scores(decision.context, output)
            tokens = read(output.tokens).tolist()
            scores = read(output.scores) if any(sequence.params.logprobs is not None for sequence, _ in rows) else None
            for row, (sequence, samples) in enumerate(rows):
                if not samples or not self._scheduler.append(sequence, tokens[row]):
                    continue
                if sequence.metrics.first_token_time is None:
                    sequence.metrics.first_token_time = now
                top = sequence.params.logprobs
                scored = None if scores is None or top is None else read_scores(scores[row], tokens[row], top)
                events.append(TokenEvent(sequence, tokens[row], sequence.finish_reason, sequence.stop_reason, scored))
        self._stats = replace(self._stats, generation_tokens=self._stats.generation_tokens + len(events))
        return prompts + events


def _prompt_scores(step: ContextStep, output: StepOutput) -> list[TokenEvent]:
    """Events of the chunks that score their prompts."""
    events: list[TokenEvent] = []
    for row, chunk in enumerate(step.chunks):
        sequence = chunk.sequence
        prompt, top = sequence.prompt_ids, sequence.params.prompt_logprobs
        if output.prompt_scores is None or top is None or not sequence.scores_prompt:
            continue
        scores = read(output.prompt_scores)[row]
        places = range(chunk.start + 1, min(chunk.start + chunk.length + 1, len(prompt)))
        found = {place: read_scores(scores[place - chunk.start - 1], prompt[place], top) for place in places}
        if found:
            events.append(TokenEvent(sequence, None, None, None, prompt_scores=found))
    return events


def _prompt_tokens(decision: Decision) -> int:
    """Prompt tokens that the sequences of this iteration computed or reused for the first time."""
    total = 0
    for chunk in decision.context.chunks if decision.context else ():
        sequence = chunk.sequence
        done = min(chunk.start + chunk.length, len(sequence.prompt_ids))
        if done > sequence.num_prompt_counted:
            total += done - sequence.num_prompt_counted
            sequence.num_prompt_counted = done
    return total
