"""Which sequences compute what in the next iteration: continuous batching over paged KV. Plain Python, no JAX.

Running sequences come first; what the token budget leaves goes to prompts, in chunks, in the order of the line. A sequence that finds
no free block takes the blocks of the last in line, which starts over later (preemption by recomputation).

The place in line is the arrival, or priority and then arrival. The first in line advances within a bounded number of iterations,
whatever comes after it, and ends: so whoever is overtaken by a bounded number of others does not starve. Under first come, first
served nobody is overtaken; under priorities a sequence waits for those of better priority, and never for later ones of its own.

A sequence shares the blocks of a prefix that has been computed before. Blocks can be found when the graph that writes them has been
decided on, from the next decision on: graphs run in order, so whoever reads them reads what was written.
"""

from __future__ import annotations

import sys
import time
from bisect import insort
from collections import Counter
from collections.abc import Sequence as Sequences
from itertools import islice
from operator import attrgetter

from xlaserve.buckets.ladder import Ladder
from xlaserve.engine.beam_group import BeamGroup
from xlaserve.engine.decision import Chunk, ContextStep, Decision, GenerateStep
from xlaserve.engine.outputs import FinishReason
from xlaserve.engine.sequence import Sequence, Status
from xlaserve.paged.block_pool import BlockPool
from xlaserve.paged.block_tables import BlockTables
from xlaserve.sampling.scores import TokenScore

WATERMARK = 0.01
"""Fraction of the blocks that admission leaves free, so that running sequences can grow before they have to preempt."""

_rank = attrgetter("rank")


class Scheduler:
    """Decides iterations and keeps track of what every sequence holds.

    Args:
        ladder: the buckets.
        pool: the KV blocks.
        max_num_seqs: most sequences that run at once: the number of slots.
        max_model_len: longest sequence, which sets the width of block tables.
        max_num_batched_tokens: most tokens of an iteration.
        by_priority: order the line by priority and then arrival; otherwise by arrival alone.
        prefix_caching: let sequences find blocks that others computed, or that they computed themselves before a preemption.
    """

    def __init__(
        self,
        ladder: Ladder,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        max_model_len: int,
        max_num_batched_tokens: int,
        by_priority: bool = False,
        prefix_caching: bool = True,
    ) -> None:
        self._ladder = ladder
        self._pool = pool
        self._budget = max_num_batched_tokens
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))
        self._watermark = int(pool.capacity * WATERMARK)
        self._by_priority = by_priority
        self._prefix_caching = prefix_caching
        self._arrivals = 0
        self._frozen = False
        self._door = sys.maxsize  # arrivals from this one on are not admitted
        self.tables = BlockTables(max_num_seqs, pool.blocks_for(max_model_len))
        # Both in the order of the line.
        self.waiting: list[Sequence] = []
        self.waiting_tokens = 0
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._groups: list[BeamGroup] = []  # that run
        self._copies: list[tuple[int, int]] = []
        self.finished: Counter[str] = Counter()

    @property
    def has_work(self) -> bool:
        """Whether any sequence is to be computed: not where everything is frozen, and those behind a closed door wait for it to open."""
        return not self._frozen and not self.drained

    @property
    def drained(self) -> bool:
        """Whether all that came before the door was closed, if it is, have ended."""
        return not self.running and not any(sequence.rank[1] < self._door for sequence in self.waiting)

    @property
    def paused(self) -> bool:
        """Whether nothing is computed, whatever comes, until `resume`."""
        return self._frozen or (self._door < sys.maxsize and self.drained)

    @property
    def draining(self) -> bool:
        """Whether it computes, behind a closed door."""
        return self._door < sys.maxsize and self.has_work

    def freeze(self) -> None:
        """Compute nothing from here on; what runs stays as it is."""
        self._frozen = True

    def close_door(self) -> None:
        """Finish what is there; what comes from here on waits."""
        self._frozen, self._door = False, min(self._door, self._arrivals)

    def resume(self) -> None:
        """Go on, with all."""
        self._frozen, self._door = False, sys.maxsize

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence in line."""
        sequence.rank = (sequence.params.priority if self._by_priority else 0, self._arrivals)
        self._arrivals += 1
        self._wait(sequence)

    def schedule(self) -> Decision | None:
        """Decide the next iteration and count it as done; None where nothing can be computed before more results are read."""
        if self._frozen:
            return None
        preemptions = self.preemptions
        generate = self._schedule_generate()
        budget = self._budget - (len(generate.sequences) if generate else 0)
        generating = generate.sequences if generate else ()
        beside = self._ladder.cost(generate.bucket) if generate else 0
        context = self._schedule_context(budget, beside, generating, admit=self.preemptions == preemptions)
        if context is not None:
            for chunk in context.chunks:
                self._publish(chunk.sequence)
        if not generate and not context:
            return None
        copies, self._copies = tuple(self._copies), []
        return Decision(generate, context, copies)

    def finish(self, sequence: Sequence, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """End a sequence and take back what it holds, and likewise a beam search; what has ended stays as it is."""
        sequence = sequence.principal
        if sequence.finish_reason is not None:
            return
        self._set_down(sequence)
        for member in sequence.unit:
            self._drop(member)
        sequence.finish_reason, sequence.stop_reason = reason, stop_reason
        sequence.metrics.finished_time = time.monotonic()
        self.finished[reason] += 1

    def reset_prefix_cache(self) -> None:
        """Nothing that has been computed so far is shared any more with what comes; what runs goes on."""
        self._pool.forget()
        for sequence in self.running:
            # What it computes from here on rests on what it computed before.
            sequence.num_published = sys.maxsize

    def give_back(self) -> None:
        """Every running sequence returns to its place in line and starts over later. Nothing may be in flight."""
        while self.running:
            self._give_back(self.running[-1])

    def append(self, sequence: Sequence, token: int) -> bool:
        """Take a token that was sampled for `sequence` and read from the device; end the sequence where it says so.

        Returns:
            Whether the token belongs to the output: what was sampled on the way after the end does not.
        """
        sequence.in_flight -= 1
        if sequence.status is Status.FINISHED:
            return False
        output = sequence.output_ids
        output.append(token)
        known = len(sequence.prompt_ids) + len(output)
        if known >= (sequence.num_published + 1) * self._pool.block_size:
            self._publish(sequence)
        if token in sequence.stop_ids and len(output) >= sequence.params.min_tokens:
            self.finish(sequence, "stop", None if token in sequence.eos_ids else token)
        elif known >= sequence.max_tokens:
            self.finish(sequence, "length")
        return True

    def force(self, sequence: Sequence, token: int) -> bool:
        """Let a sequence go on by a token that nobody sampled, since nothing else could come. None of its tokens may be in flight.

        What it has not computed then is computed as the end of a prompt would be: as a chunk, which begins with a block.

        Returns:
            As `append`.
        """
        sequence.in_flight += 1
        if not self.append(sequence, token):
            return False
        if sequence.resident:
            sequence.num_computed -= sequence.num_computed % self._pool.block_size
            sequence.resident = False
        return True

    def advance(self, sequence: Sequence, candidates: list[TokenScore]) -> bool:
        """Take the next tokens of one sequence of a beam search; when all of its sequences have theirs, the search takes a step.

        Returns:
            Whether the search has ended: its hypotheses are complete.
        """
        sequence.in_flight -= 1
        group = sequence.group
        assert group is not None
        # What was on the way when the group lost its place is computed again.
        if sequence.status is not Status.RUNNING:
            return False
        if not group.take(sequence, candidates):
            return False
        branches = group.step()
        if group.search.done:
            self.finish(group.first, group.search.hypotheses[0].finish_reason)
            return True
        going_on = {branch.parent for branch in branches}
        for place, beam in enumerate(group.beams):
            if place not in going_on:
                self._drop(beam)
        # The first to go on from a beam is the beam itself; the others part from it before it gets its token.
        beams: list[Sequence] = []
        for at, (parent, _) in enumerate(branches):
            known = any(branch.parent == parent for branch in branches[:at])
            beams.append(self._fork(group.beams[parent]) if known else group.beams[parent])
        group.beams = beams
        for beam, branch in zip(beams, branches, strict=True):
            beam.output_ids.append(branch.token)
            self._publish(beam)
        return False

    def _schedule_generate(self) -> GenerateStep | None:
        chosen: list[Sequence] = []
        starts: list[int] = []
        size = self._pool.block_size
        for sequence in self.running[:]:
            # A resident sequence computes its newest token, if it has not yet, and nothing else.
            start = sequence.num_computed
            if not sequence.resident or start + 1 >= sequence.max_tokens:
                continue
            # Which token a beam goes on with is decided when all of its group have been read; which tokens a form allows, likewise.
            if (sequence.group is not None or sequence.structure is not None) and start >= sequence.num_known:
                continue
            if sequence.structure is not None and not sequence.structure.ready:
                continue
            # Growth for a sequence before this one may have preempted it, which made it non-resident.
            if start < len(sequence.block_ids) * size or self._grow(sequence, 1, chosen):
                chosen.append(sequence)
                starts.append(start)
        if not chosen:
            return None
        for sequence in chosen:
            sequence.num_computed += 1
            sequence.in_flight += 1
        width = self._pool.blocks_for(max(starts) + 1)
        return GenerateStep(self._ladder.pick_generate(len(chosen), width), tuple(chosen), tuple(starts))

    def _schedule_context(self, budget: int, beside: int, generating: Sequences[Sequence], *, admit: bool) -> ContextStep | None:
        queue = [s for s in self.running if not s.resident]
        starts = [s.num_computed for s in queue]
        started = len(queue)
        admissible = self._admissible() if admit else []
        for sequence, shared in admissible:
            queue.append(sequence)
            starts.append(len(shared) * self._pool.block_size)
        if not queue:
            return None
        choice = self._ladder.pick_context([s.num_known - start for s, start in zip(queue, starts, strict=True)], starts, budget, beside)
        if choice is None:
            return None
        chunks: list[Chunk] = []
        scheduled = [*generating]
        # All before the first allocation, which could evict what they are to share.
        admitted = max(0, len(choice.lengths) - started)
        while 0 < admitted < len(admissible) and admissible[admitted][0] in admissible[admitted - 1][0].unit:
            admitted += 1
        for sequence, shared in admissible[:admitted]:
            self._admit(sequence, shared)
        for sequence, length in zip(queue, choice.lengths, strict=False):
            if sequence.status is not Status.RUNNING or not self._grow(sequence, length, scheduled):
                break
            start = sequence.num_computed
            sequence.num_computed += length
            sequence.resident = samples = sequence.num_computed == sequence.num_known
            sequence.in_flight += samples
            chunks.append(Chunk(sequence, start, length, samples))
            scheduled.append(sequence)
        return ContextStep(choice.bucket, tuple(chunks)) if chunks else None

    def _admissible(self) -> list[tuple[Sequence, list[int]]]:
        """The waiting sequences that could be admitted together now, in order, each with the blocks that it can share.

        There is a slot for each, and blocks for all its tokens.
        """
        chosen: list[tuple[Sequence, list[int]]] = []
        if not self._free_slots or not self.waiting:
            return chosen
        free = self._pool.num_free - (self._watermark if self.running else 0)
        # Prompts under way have a claim on the blocks of the chunks that they have not computed yet.
        free -= sum(self._pool.blocks_for(s.num_known) - len(s.block_ids) for s in self.running if not s.resident)
        # Searches that run have a claim on the slots that they may still branch into.
        slots = len(self._free_slots) - sum(group.width - len(group.beams) for group in self._groups)
        seen: set[Sequence] = set()
        for sequence in self.waiting:
            if sequence in seen or sequence.rank[1] >= self._door or self._waits_for_leader(sequence):
                continue
            if sequence.structure is not None and not sequence.structure.ready:
                continue
            unit = sequence.unit
            slots -= sequence.group.width if sequence.group is not None else 1
            # A preempted sequence waits until what was on its way has been read.
            if slots < 0 or any(member.in_flight for member in unit):
                break
            found: list[tuple[Sequence, list[int]]] = []
            for member in unit:
                needed = self._pool.blocks_for(member.num_known)
                shared = self._sharable(member, needed - free)
                free -= needed - len(shared) + self._pool.num_idle(shared)
                found.append((member, shared))
            if free < 0:
                break
            chosen += found
            seen.update(unit)
        return chosen

    def _waits_for_leader(self, sequence: Sequence) -> bool:
        """Whether another completion of its request is still computing the blocks of the prompt that it can share."""
        leader = sequence.leader
        begun = sequence.output_ids and sequence.num_cached_tokens is not None  # a form may force tokens before anything is computed
        if leader is None or begun or leader.status is Status.FINISHED:
            return False
        return leader.num_computed // self._pool.block_size < (len(sequence.prompt_ids) - 1) // self._pool.block_size

    def _sharable(self, sequence: Sequence, at_least: int) -> list[int]:
        """Computed blocks that `sequence` can begin with; none where they are fewer than `at_least`, which costs no search.

        One token is left to compute, since there would be nothing to sample from otherwise.
        """
        size = self._pool.block_size
        most = (sequence.num_known - 1) // size
        if at_least > most or sequence.scores_prompt:
            return []
        if not self._prefix_caching:
            leader = sequence.leader
            return leader.block_ids[: (len(sequence.prompt_ids) - 1) // size] if leader and leader.status is Status.RUNNING else []
        digests = sequence.full_digests(size)
        if at_least > 0 and not self._pool.holds(digests[at_least - 1]):
            return []
        return self._pool.find(islice(digests, most))

    def _publish(self, sequence: Sequence) -> None:
        """Let others find the blocks whose tokens are known and whose KV is computed or on the way."""
        size = self._pool.block_size
        full = min(sequence.num_computed, sequence.num_known) // size
        if full <= sequence.num_published or not self._prefix_caching:
            return
        digests, events = sequence.full_digests(size), self._pool.events
        for at in range(sequence.num_published, full):
            new = self._pool.publish(sequence.block_ids[at], digests[at])
            if events is not None and new:
                events.stored(digests[at], digests[at - 1] if at else None, sequence.tokens(at * size, (at + 1) * size))
        sequence.num_published = full

    def _admit(self, sequence: Sequence, shared: list[int]) -> None:
        self._leave_queue(sequence)
        if sequence.group is not None and sequence.group not in self._groups:
            self._groups.append(sequence.group)
        self._start(sequence, shared)
        sequence.num_published = len(shared)
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed
            if self._prefix_caching:
                self.prefix_queries += sequence.num_known
                self.prefix_hits += sequence.num_computed
        if sequence.metrics.first_scheduled_time is None:
            sequence.metrics.first_scheduled_time = time.monotonic()

    def _start(self, sequence: Sequence, shared: list[int]) -> None:
        """Let a sequence run that begins with blocks which others hold or have computed."""
        sequence.status, sequence.slot = Status.RUNNING, self._free_slots.pop()
        insort(self.running, sequence, key=_rank)
        self._pool.share(shared)
        self.tables.append(sequence.slot, 0, shared)
        sequence.block_ids = shared[:]
        sequence.num_computed = len(shared) * self._pool.block_size

    def _fork(self, parent: Sequence) -> Sequence:
        """Another sequence that goes on from where `parent` is. They share all full blocks; what fills no block is copied."""
        self._publish(parent)
        assert parent.group is not None
        child = parent.fork()
        full, part = divmod(parent.num_computed, self._pool.block_size)
        self._start(child, parent.block_ids[:full])
        child.num_published = parent.num_published
        # Where no block is free for the copy, what would be copied is computed again, like the end of a prompt.
        own = self._pool.allocate(1) if part else []
        if own is None:
            return child
        assert child.slot is not None
        self.tables.append(child.slot, full, own)
        child.block_ids += own
        child.num_computed, child.resident = parent.num_computed, True
        self._copies += [(parent.block_ids[full], block) for block in own]
        return child

    def _grow(self, sequence: Sequence, tokens: int, scheduled: Sequences[Sequence]) -> bool:
        """Give `sequence` blocks for `tokens` more tokens, preempting the last in line for them.

        Sequences that this iteration has scheduled keep theirs. Something always goes on: the first in line can take every
        block but its own, and the pool holds the longest sequence.

        Returns:
            Whether it has its blocks; where not, it waits for a later iteration or lost its own place.
        """
        missing = self._pool.blocks_for(sequence.num_computed + tokens) - len(sequence.block_ids)
        if missing <= 0:
            return True
        while (blocks := self._pool.allocate(missing)) is None:
            victim = self.running[-1]
            if any(member in scheduled for member in victim.unit):
                return False
            self._preempt(victim)
            if sequence.status is not Status.RUNNING:
                return False
        assert sequence.slot is not None
        self.tables.append(sequence.slot, len(sequence.block_ids), blocks)
        sequence.block_ids += blocks
        return True

    def _preempt(self, sequence: Sequence) -> None:
        sequence.metrics.num_preemptions += 1
        self.preemptions += 1
        self._give_back(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        self._set_down(sequence)
        for member in sequence.unit:
            self.running.remove(member)
            self._take_back(member)
            member.status, member.num_computed, member.num_published, member.resident = Status.WAITING, 0, 0, False
            self._wait(member)

    def _set_down(self, sequence: Sequence) -> None:
        """What the search of a sequence, if it is part of one, has waited for counts no more, and it claims no slots."""
        group = sequence.group
        if group is not None and group in self._groups:
            self._groups.remove(group)
            group.candidates.clear()

    def _drop(self, sequence: Sequence) -> None:
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        else:
            self._leave_queue(sequence)
        self._take_back(sequence)
        sequence.status = Status.FINISHED

    def _wait(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_rank)
        self.waiting_tokens += sequence.queued_tokens

    def _leave_queue(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        self.waiting_tokens -= sequence.queued_tokens

    def _take_back(self, sequence: Sequence) -> None:
        # Graphs run in the order of their dispatch, so blocks and slot can be given on at once: whatever still is on its way to
        # them is overwritten by whoever uses them next.
        # From the end: the start of a prefix is of use without its end, and not the other way round.
        self._pool.release(reversed(sequence.block_ids))
        sequence.block_ids = []
        if sequence.slot is not None:
            self.tables.clear(sequence.slot)
            self._free_slots.append(sequence.slot)
            sequence.slot = None
