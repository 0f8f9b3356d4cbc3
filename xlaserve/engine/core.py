"""The engine's heart: schedule, dispatch, and read what the step before sampled, one iteration at a time.

The host decides iteration N + 1 while the device computes N: sampled tokens stay on the device, and the host reads them one step late,
unless asynchronous scheduling is off: then it reads each iteration before it decides the next.
Everything that reaches it has been validated; it belongs to one thread.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlaserve.buckets.compile_events import COMPILE_EVENTS
from xlaserve.buckets.graphs import StepOutput
from xlaserve.buckets.ladder import Bucket
from xlaserve.engine.batch import Batch, BatchBuilder, Mask, mask_of, structured_rows
from xlaserve.engine.decision import Decision
from xlaserve.engine.events import prompt_score_events, search_event, token_event
from xlaserve.engine.grammar import Grammars
from xlaserve.engine.graph_table import GraphTable
from xlaserve.engine.messages import TokenEvent
from xlaserve.engine.modes import PauseMode, SleepLevel
from xlaserve.engine.outputs import ITERATION_TOKENS, EngineStats, FinishReason
from xlaserve.engine.report import WAITING_SHOWN, EngineReport, sequence_reports
from xlaserve.engine.runner import Runner, read
from xlaserve.engine.scheduler import Scheduler
from xlaserve.engine.sequence import Sequence
from xlaserve.engine.structures import StructureCounters, Structures
from xlaserve.engine.trace import DeviceRecord, StepRecord, StepTrace
from xlaserve.errors import EngineStateError
from xlaserve.paged.block_pool import BlockPool
from xlaserve.sampling.scores import read_scores
from xlaserve.sampling.structured import StructuredOutput

log = logging.getLogger(__name__)

_WORTH_WAITING = 0.25
"""Where at least this part of an iteration's rows have a form, the next is decided when they have been read: they take part in it then, and
the others lose the time that the host takes. Otherwise the others run ahead, and those take part in every second one."""

_FEWEST_FORCED = 4
"""Tokens that a form must force for them to be computed as a chunk, where a sequence is past its prompt: fewer cost less one by one."""

_IDLE_SECONDS = 0.005
"""How long to wait for forms where there is nothing else to do, before looking for messages again."""

_Fetched = tuple[list[int], NDArray[np.int32] | None, NDArray[np.int32] | None]
"""Tokens of each row of a graph, and their scores and those of prompts where they were asked for."""


@dataclass(slots=True)
class _Counters:
    """What `EngineStats` counts, in place."""

    steps: int = 0
    scheduled_tokens: int = 0
    padded_tokens: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    allocated_token_slots: int = 0
    used_token_slots: int = 0
    iteration_tokens: list[int] = field(default_factory=lambda: [0] * (len(ITERATION_TOKENS) + 1))


class _InFlight(NamedTuple):
    """An iteration whose tokens the host has not read: its number and graphs, when the first of them was dispatched, and whether to read
    it before the next is decided.
    """

    step: int
    decision: Decision
    outputs: list[StepOutput]
    dispatched: float
    first: bool


class EngineCore:
    """Runs iterations.

    Args:
        scheduler: decides them.
        runner: computes them.
        pool: the KV blocks.
        max_num_seqs: number of sequence slots.
        graphs: counts what runs.
        async_scheduling: whether to decide an iteration before the one before it has been read.
        grammars: compile the forms of structured outputs.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        pool: BlockPool,
        max_num_seqs: int,
        graphs: GraphTable,
        *,
        grammars: Grammars | None = None,
        async_scheduling: bool = True,
    ) -> None:
        self._structures = Structures(grammars) if grammars is not None else None
        self._scheduler = scheduler
        self._runner = runner
        self._pool = pool
        self._slots = max_num_seqs
        self._graphs = graphs
        self._async = async_scheduling
        self._batches = BatchBuilder(scheduler.tables, max_num_seqs)
        self._unread: list[_InFlight] = []
        self._device_free = 0.0
        self._counters = _Counters()
        self.trace = StepTrace()
        self.progress = 0
        self.sleep_level = 0
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
        if sequence.params.structured is not None:
            assert self._structures is not None
            self._structures.add(sequence)
        self._scheduler.add(sequence)

    def check(self, structured: StructuredOutput) -> None:
        """Return where a form can be used. It takes as long as it takes: a server asks a `GrammarCheck`.

        Raises:
            InvalidRequestError: it makes no sense, or is too complex.
        """
        assert self._structures is not None
        self._structures.grammars.check(structured)

    def prepare_grammars(self) -> None:
        """Do beforehand, in any thread, what the first structured sequence would wait for."""
        assert self._structures is not None
        self._structures.grammars.prepare()

    def finish(self, sequence: Sequence, reason: FinishReason, stop_reason: str | None = None) -> None:
        """End a sequence from outside: aborted, or a stop string was found in its text. Without effect on one that has ended."""
        self._scheduler.finish(sequence, reason, stop_reason)

    def reset_prefix_cache(self) -> None:
        """Let nothing that has been computed so far be shared with what comes."""
        self._scheduler.reset_prefix_cache()

    @property
    def paused(self) -> bool:
        """Whether nothing is computed until `resume` or `wake`, whatever comes."""
        return self._scheduler.paused

    @property
    def draining(self) -> bool:
        """Whether it is on the way to a pause, and what ran then, or waited, has not all ended."""
        return self._scheduler.draining

    @property
    def drained(self) -> bool:
        """Whether it is paused, and has nothing left of what came before."""
        return self._scheduler.paused and self._scheduler.drained

    def pause(self, mode: PauseMode) -> list[TokenEvent]:
        """Compute nothing from here on; with "wait", only once all that is there has ended. Nothing may be in flight.

        Returns:
            The ends of the sequences that mode "abort" ends.

        Raises:
            EngineStateError: the engine sleeps, so that nothing could end.
        """
        scheduler = self._scheduler
        if mode == "wait":
            if self.sleep_level:
                raise EngineStateError("The engine sleeps, and nothing ends meanwhile: wake it first.")
            scheduler.close_door()
            return []
        scheduler.freeze()
        ended = {sequence.principal for sequence in (*scheduler.running, *scheduler.waiting)} if mode == "abort" else set[Sequence]()
        for sequence in ended:
            scheduler.finish(sequence, "abort")
        return [token_event(sequence, None, None) for sequence in ended]

    def resume(self) -> None:
        """Go on after a pause.

        Raises:
            EngineStateError: the engine sleeps.
        """
        if self.sleep_level:
            raise EngineStateError("The engine sleeps: wake it.")
        self._scheduler.resume()

    def sleep(self, level: SleepLevel) -> int:
        """Pause, and give back the device's memory: KV and slots, from level 2 on the weights too. Nothing may be in flight.

        Running sequences return to the queue; their KV is computed anew after `wake`, and so is what the prefix cache held.

        Returns:
            Bytes that were given back.
        """
        self._scheduler.freeze()
        self._scheduler.give_back()
        self._scheduler.reset_prefix_cache()
        self._batches.forget()
        freed = self._runner.release(weights=level == 2)
        self.sleep_level = max(self.sleep_level, level)
        log.info("Asleep at level %d: %.1f MiB of the device's memory are free", self.sleep_level, freed / 2**20)
        return freed

    def wake(self) -> None:
        """Get back what `sleep` gave, and go on. Without effect on an engine that is awake, paused or not.

        Raises:
            CheckpointError: the weights cannot be read any more; the engine sleeps on.
        """
        if not self.sleep_level:
            return
        begin = time.monotonic()
        self._runner.restore()
        self.sleep_level = 0
        self._scheduler.resume()
        log.info("Awake after %.2f s", time.monotonic() - begin)

    def settle(self) -> list[TokenEvent]:
        """Read what is in flight."""
        events: list[TokenEvent] = []
        while self._unread:
            self._read(events)
        return events

    def step(self) -> list[TokenEvent]:
        """Dispatch the next iteration, if there is one, and read the one before it; without asynchronous scheduling read that same one."""
        events: list[TokenEvent] = []
        wait = process = 0.0
        if self._unread and self._unread[0].first:
            wait, process = self._read(events)
        if self._structures is not None and self._structures.busy:
            self._follow(self._structures, events)
        begin = time.perf_counter()
        decision = self._scheduler.schedule()
        decided = time.perf_counter()
        prepare, dispatch = self._dispatch(decision) if decision is not None else (0.0, 0.0)
        if len(self._unread) > (self._async and decision is not None):
            wait, process = self._read(events)
        elif decision is None and not events and self._structures is not None:
            self._structures.wait(_IDLE_SECONDS)
        self.progress += bool(decision is not None or events)
        if self._pool.events is not None:
            self._pool.events.flush()
        if decision is not None:
            scheduler = self._scheduler
            places, tokens = decision.places, decision.tokens
            self.trace.add(
                StepRecord(
                    self._counters.steps,
                    begin,
                    decided - begin,
                    prepare,
                    dispatch,
                    wait,
                    process,
                    tokens,
                    places - tokens,
                    decision.graphs,
                    len(scheduler.running),
                    len(scheduler.waiting),
                    self._pool.num_free,
                )
            )
        return events

    def stats(self) -> EngineStats:
        """A snapshot; may be called from any thread."""
        counters, scheduler = self._counters, self._scheduler
        forms = self._structures.counters if self._structures is not None else StructureCounters()
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_blocks=self._pool.capacity,
            num_free_blocks=self._pool.num_free,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            preemptions=scheduler.preemptions,
            finished=dict(scheduler.finished),
            steps=counters.steps,
            scheduled_tokens=counters.scheduled_tokens,
            padded_tokens=counters.padded_tokens,
            iteration_tokens=tuple(counters.iteration_tokens),
            compile_events=COMPILE_EVENTS.count - self._compiled_before,
            prefix_cache_queries=scheduler.prefix_queries,
            prefix_cache_hits=scheduler.prefix_hits,
            allocated_token_slots=counters.allocated_token_slots,
            used_token_slots=counters.used_token_slots,
            grammars=forms.compiled,
            grammar_seconds=forms.compile_seconds,
            masks=forms.masks,
            mask_seconds=forms.mask_seconds,
            forced_tokens=forms.forced,
            paused=self.paused,
            sleep_level=self.sleep_level,
        )

    def report(self) -> EngineReport:
        """Who is computed, who waits, and how graphs are used. Nothing may be in flight."""
        scheduler = self._scheduler
        return EngineReport(
            time.monotonic(),
            self._slots,
            sequence_reports(scheduler.running),
            sequence_reports(scheduler.waiting, WAITING_SHOWN),
            self._graphs.report(),
        )

    def _read(self, events: list[TokenEvent]) -> tuple[float, float]:
        """Take the oldest iteration that is in flight; seconds spent on waiting for it, and on its tokens."""
        step, decision, outputs, dispatched, _ = self._unread.pop(0)
        begin = time.perf_counter()
        fetched = _fetch(decision, outputs)
        arrived = time.perf_counter()
        start, self._device_free = max(dispatched, self._device_free), arrived
        self.trace.ran(DeviceRecord(step, start, arrived - start, decision.graphs))
        self._process(decision, fetched, events)
        return arrived - begin, time.perf_counter() - arrived

    def _follow(self, structures: Structures, events: list[TokenEvent]) -> None:
        """Let sequences go on whose forms have been looked at: what must come next comes at once, and what is complete ends."""
        scheduler = self._scheduler
        for sequence in structures.collect():
            structure, params = sequence.structure, sequence.params
            assert structure is not None
            if structure.error is not None:
                log.warning("Request %s has ended: its form cannot go on: %.200s", sequence.request_id, structure.error)
                self._end(sequence, "error", events)
                continue
            # Log probabilities are of tokens that the model chose from, forced or not: so it has to give them.
            worth = len(structure.forced) >= (_FEWEST_FORCED if sequence.resident else 1)
            if worth and params.logprobs is None and params.prompt_logprobs is None:
                if sequence.metrics.first_token_time is None:
                    sequence.metrics.first_token_time = time.monotonic()
                for token in structure.take_forced():
                    if not scheduler.force(sequence, token):
                        break
                    events.append(token_event(sequence, token, None))
                    structures.counters.forced += 1
                    self._counters.generation_tokens += 1
                self._batches.reseat(sequence)
            if structure.complete and sequence.finish_reason is None:
                self._end(sequence, "stop", events)

    def _end(self, sequence: Sequence, reason: FinishReason, events: list[TokenEvent]) -> None:
        self._scheduler.finish(sequence, reason)
        events.append(token_event(sequence, None, None))

    def _dispatch(self, decision: Decision) -> tuple[float, float]:
        """Start the iteration's graphs; seconds spent on their inputs, and on starting them."""
        if decision.copies:
            self._runner.copy(decision.copies)
        outputs: list[StepOutput] = []
        prepare = dispatch = first = 0.0
        structured = 0
        for step, build in ((decision.generate, self._batches.generate), (decision.context, self._batches.context)):
            if step is not None:
                begin = time.perf_counter()
                rows = structured_rows(step) if self._structures is not None and self._structures.used else {}
                structured += len(rows)
                batch, mask = build(step), mask_of(rows, step.bucket)  # type: ignore[arg-type]
                built = time.perf_counter()
                first = first or built
                outputs.append(self._run(step.bucket, batch, mask))
                self._graphs.count(step.bucket, step.tokens)
                prepare, dispatch = prepare + built - begin, dispatch + time.perf_counter() - built
        counters, running, size = self._counters, self._scheduler.running, self._pool.block_size
        held = computed = 0
        for sequence in running:
            held += len(sequence.block_ids)
            computed += sequence.num_computed
        allocated = self._pool.capacity - self._pool.num_free
        counters.steps += 1
        worth = structured > 0 and structured >= _WORTH_WAITING * sum(map(len, decision.rows))
        self._unread.append(_InFlight(counters.steps, decision, outputs, first, worth))
        counters.scheduled_tokens += decision.tokens
        counters.iteration_tokens[bisect_left(ITERATION_TOKENS, decision.tokens)] += 1
        counters.padded_tokens += decision.places - decision.tokens
        counters.prompt_tokens += _prompt_tokens(decision)
        # A shared block counts once, in both; all its places hold a token.
        counters.allocated_token_slots += allocated * size
        counters.used_token_slots += computed - (held - allocated) * size
        return prepare, dispatch

    def _run(self, bucket: Bucket, batch: Batch, mask: Mask | None) -> StepOutput:
        for sequence in self._batches.take_seated():
            self._runner.seat(sequence)
        return self._runner.run(bucket, batch, mask)

    def _process(self, decision: Decision, fetched: list[_Fetched], events: list[TokenEvent]) -> None:
        now, append = time.monotonic(), self._scheduler.append
        if decision.context is not None and (places := fetched[-1][2]) is not None:
            events += prompt_score_events(decision.context, places)
        generated = 0
        for (tokens, scores, _), rows in zip(fetched, decision.rows, strict=True):
            for row, (sequence, samples) in enumerate(rows):
                if not samples:
                    continue
                top = sequence.params.logprobs
                scored = None if scores is None or top is None else read_scores(scores[row], tokens[row], top)
                metrics = sequence.metrics
                if metrics.first_token_time is None:
                    metrics.first_token_time = now
                if sequence.group is not None:
                    assert scored is not None
                    if self._scheduler.advance(sequence, scored):
                        hypotheses = sequence.group.search.hypotheses
                        events.append(search_event(sequence.group.first, hypotheses))
                        generated += sum(len(hypothesis.token_ids) for hypothesis in hypotheses)
                elif append(sequence, tokens[row]):
                    events.append(token_event(sequence, tokens[row], scored))
                    generated += 1
                    if sequence.structure is not None and sequence.finish_reason is None:
                        assert self._structures is not None
                        self._structures.consume(sequence, tokens[row])
        self._counters.generation_tokens += generated


def _fetch(decision: Decision, outputs: list[StepOutput]) -> list[_Fetched]:
    """Wait for the results of an iteration's graphs; scores cross only where a row asked for them."""
    return [
        (
            read(output.tokens).tolist(),
            read(output.scores) if any(s.params.logprobs is not None for s, _ in rows) else None,
            read(output.prompt_scores) if output.prompt_scores is not None and any(s.scores_prompt for s, _ in rows) else None,
        )
        for output, rows in zip(outputs, decision.rows, strict=True)
    ]


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
