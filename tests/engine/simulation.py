"""The real scheduler, batches and core over a fake device that notices every mistake, under a random load, checked at every iteration."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.engine.fake_device import VOCAB, FakeRunner, expected_beams, expected_tokens
from xlaserve.buckets.ladder import make_ladder
from xlaserve.engine.beam_group import BeamGroup
from xlaserve.engine.core import EngineCore
from xlaserve.engine.decision import Decision
from xlaserve.engine.graph_table import GraphTable
from xlaserve.engine.messages import TokenEvent
from xlaserve.engine.outputs import RequestMetrics
from xlaserve.engine.scheduler import Scheduler
from xlaserve.engine.sequence import Sequence, Status, stream_seed
from xlaserve.paged.block_pool import BlockPool
from xlaserve.sampling.beam_search import BeamSearchParams, Hypothesis, candidates_per_beam
from xlaserve.sampling.params import SamplingParams


@dataclass(frozen=True)
class Sizes:
    """An engine's limits, and what its users send."""

    num_blocks: int
    block: int = 16
    max_model_len: int = 256
    max_num_seqs: int = 8
    batched: int = 64
    static_width: bool = False
    compact: bool = False
    longest_prompt: int = 120
    longest_output: int = 60
    arrivals: float = 0.3
    aborts: float = 0.01
    alike: float = 0.0  # share of prompts that begin as others do
    several: float = 0.0  # share of requests for two to four completions
    beams: float = 0.0  # share of requests that are beam searches
    resets: float = 0.0
    pauses: float = 0.0
    prefix_caching: bool = True
    by_priority: bool = False
    async_scheduling: bool = True


@dataclass
class Simulation:
    """One engine under a random load, checked at every iteration."""

    sizes: Sizes
    seed: int = 0
    steps: int = 0
    events: int = 0
    preempted: int = 0
    peak_running: int = 0
    alive: dict[Sequence, list[int]] = field(default_factory=dict)
    searches: dict[Sequence, list[Hypothesis]] = field(default_factory=dict)
    first_scheduled: list[Sequence] = field(default_factory=list)
    scheduled: set[Sequence] = field(default_factory=set)
    arrived: list[Sequence] = field(default_factory=list)
    progress: dict[Sequence, int] = field(default_factory=dict)
    oldest: Sequence | None = None

    def __post_init__(self) -> None:
        s = self.sizes
        self.rng = random.Random(self.seed)
        self.by_key: dict[int, Sequence] = {}
        self.beginnings = [[self.rng.randrange(VOCAB) for _ in range(s.longest_prompt)] for _ in range(3)]
        self.pool = BlockPool(s.num_blocks, s.block)
        ladder = make_ladder(
            max_model_len=s.max_model_len,
            max_num_seqs=s.max_num_seqs,
            max_num_batched_tokens=s.batched,
            block_size=s.block,
            static_width=s.static_width,
            compact=s.compact,
        )
        self.scheduler = Scheduler(
            ladder,
            self.pool,
            max_num_seqs=s.max_num_seqs,
            max_model_len=s.max_model_len,
            max_num_batched_tokens=s.batched,
            prefix_caching=s.prefix_caching,
            by_priority=s.by_priority,
        )
        self.runner = FakeRunner(s.num_blocks, s.block, s.max_num_seqs)
        self.graphs = GraphTable(ladder, {})
        self.core = EngineCore(
            self.scheduler,
            self.runner,  # type: ignore[arg-type]
            self.pool,
            s.max_num_seqs,
            self.graphs,
            async_scheduling=s.async_scheduling,
        )
        schedule = self.scheduler.schedule

        def checked() -> Decision | None:
            decision = schedule()
            if decision is not None:
                self.check_decision(decision)
            return decision

        self.scheduler.schedule = checked  # type: ignore[method-assign]

    def add(
        self,
        prompt: list[int] | None = None,
        most: int | None = None,
        stop: frozenset[int] | None = None,
        *,
        n: int | None = None,
        priority: int | None = None,
        salt: str | None = None,
    ) -> Sequence:
        """Add a request; its first completion is returned."""
        s, rng = self.sizes, self.rng
        if prompt is None:
            scale = rng.choice((3, 20, s.longest_prompt))
            prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, min(scale, s.max_model_len - 1)))]
            if rng.random() < s.alike:
                begin = rng.randint(0, len(prompt))
                prompt[:begin] = rng.choice(self.beginnings)[:begin]
                salt = rng.choice((None, None, None, "salt"))
        if priority is None:
            priority = rng.randint(-2, 2) if s.by_priority else 0
        if rng.random() < s.beams and (search := self.search(prompt, priority, salt)) is not None:
            return search
        if n is None:
            n = rng.randint(2, 4) if rng.random() < s.several else 1
        room = s.max_model_len - len(prompt)
        most = min(room, most or rng.randint(1, s.longest_output))
        if stop is None:
            stop = frozenset(rng.sample(range(VOCAB), rng.choice((0, 0, 1, 5))))
        least = rng.choice((0, 0, 1, min(5, most)))
        params = SamplingParams(
            n=n, max_tokens=most, min_tokens=least, temperature=rng.choice((0.0, 1.0)), cache_salt=salt, priority=priority
        )
        seed = rng.getrandbits(64)
        name, eos, metrics = f"r{len(self.arrived)}", frozenset(sorted(stop)[:1]), RequestMetrics(0.0)
        leader: Sequence | None = None
        for index in range(n):
            stream = stream_seed(seed, index)
            sequence = Sequence(name, index, prompt, params, stop, eos, stream, len(prompt) + most, metrics, leader)
            leader = leader or sequence
            self.alive[sequence] = expected_tokens(prompt, seed=stream, count=most, stop_ids=stop, min_tokens=least)
            self.arrived.append(sequence)
            self.progress[sequence] = self.steps
            self.by_key[sequence.key] = sequence
            self.core.add(sequence)
        self.events += 1
        assert leader is not None
        return leader

    def search(self, prompt: list[int], priority: int, salt: str | None) -> Sequence | None:
        """Add a beam search, where one fits."""
        s, rng = self.sizes, self.rng
        count = min(s.max_model_len - len(prompt), rng.randint(1, s.longest_output))
        most = min(s.max_num_seqs, (s.num_blocks - 1) // self.pool.blocks_for(len(prompt) + count), 6)
        if not most:
            return None
        params = BeamSearchParams(
            beam_width=rng.randint(1, most),
            max_tokens=count,
            length_penalty=rng.choice((0.0, 1.0, 2.0)),
            early_stopping=rng.choice((True, False, "never")),
            priority=priority,
            cache_salt=salt,
        )
        eos = frozenset(rng.sample(range(VOCAB), rng.choice((0, 1, 3))))
        sampling = params.sampling(candidates_per_beam(params.beam_width, len(eos)))
        first = Sequence(f"r{len(self.arrived)}", 0, prompt, sampling, eos, eos, 0, len(prompt) + count, RequestMetrics(0.0))
        BeamGroup.of(params, first, eos)
        self.searches[first] = expected_beams(prompt, params, count=count, eos_ids=eos)
        self.alive[first] = [0] * (count * params.beam_width)
        self.arrived.append(first)
        self.progress[first] = self.steps
        self.by_key[first.key] = first
        self.core.add(first)
        self.events += 1
        return first

    def abort(self, sequence: Sequence) -> None:
        self.events += 1
        self.core.finish(sequence, "abort")
        assert sequence.finish_reason == "abort"
        del self.alive[sequence]

    def step(self) -> None:
        self.steps += 1
        self.events += 1
        self.take(self.core.step)

    def take(self, happen: Callable[[], list[TokenEvent]]) -> None:
        """Check what comes of an iteration, or of reading one."""
        before = {sequence: len(sequence.output_ids) for sequence in self.alive}
        for event in happen():
            sequence = self.by_key[event.key]
            assert sequence in self.alive, "an event of a sequence that has ended"
            if sequence in self.searches:
                assert event.hypotheses == self.searches[sequence]
                assert event.finish_reason == sequence.finish_reason == self.searches[sequence][0].finish_reason
                del self.alive[sequence]
                continue
            wanted = self.alive[sequence]
            before[sequence] += 1
            assert sequence.output_ids == wanted[: len(sequence.output_ids)]
            assert event.token == wanted[before[sequence] - 1]
            assert (event.finish_reason is not None) == (len(sequence.output_ids) == len(wanted))
            if event.finish_reason is not None:
                assert event.finish_reason == ("stop" if self.stopped(sequence, wanted) else "length")
                assert event.stop_reason == (wanted[-1] if self.stopped(sequence, wanted) and wanted[-1] not in sequence.eos_ids else None)
                assert sequence.block_ids == []
                del self.alive[sequence]
        self.check_state()

    def pause(self) -> None:
        """Pause, sleep, or wait for what is there, and go on; requests come and go meanwhile."""
        self.take(self.core.settle)
        way = self.rng.choice(("keep", "abort", "wait", "sleep"))
        if way == "abort":
            ended = self.core.pause("abort")
            assert {event.key for event in ended} == {sequence.key for sequence in self.alive}
            assert {event.finish_reason for event in ended} <= {"abort"}
            self.alive.clear()
        elif way == "sleep":
            self.core.sleep(self.rng.choice((1, 2)))
            assert self.pool.num_free == self.pool.capacity
            assert self.pool.num_published == 0
            assert not self.scheduler.running
        else:
            self.core.pause(way)  # type: ignore[arg-type]
        there, late = list(self.alive), self.add()
        if there:
            self.abort(self.rng.choice(there))
        if way == "wait":
            while self.core.draining:
                self.step()
            assert self.core.drained
            assert not any(sequence in self.alive for sequence in there)
            assert late in self.scheduler.waiting
        self.check_state()
        decided = self.core.stats().steps
        assert self.core.step() == []
        assert (self.core.paused, self.core.has_work, self.core.stats().steps) == (True, False, decided)
        self.core.wake() if way == "sleep" else self.core.resume()
        assert not self.core.paused

    @staticmethod
    def stopped(sequence: Sequence, tokens: list[int]) -> bool:
        return tokens[-1] in sequence.stop_ids and len(tokens) >= sequence.params.min_tokens

    def check_decision(self, decision: Decision) -> None:
        generating = list(decision.generate.sequences) if decision.generate else []
        chunks = list(decision.context.chunks) if decision.context else []
        encoding = [chunk.sequence for chunk in chunks]
        assert generating or encoding
        assert len({id(s) for s in generating + encoding}) == len(generating) + len(encoding), "one sequence, two rows"
        assert all(s.status is Status.RUNNING for s in generating + encoding)
        assert len(generating) + sum(chunk.length for chunk in chunks) <= self.sizes.batched
        if decision.generate:
            assert len(generating) <= decision.generate.bucket.rows
            assert max(decision.generate.starts) < decision.generate.bucket.width * self.sizes.block
        for chunk in chunks:
            assert chunk.length >= 1
            assert chunk.start % self.sizes.block == 0
            assert chunk.samples == (chunk.start + chunk.length == chunk.sequence.num_known)
            assert chunk.samples or chunk.length % self.sizes.block == 0
        for sequence in generating + encoding:
            assert len(sequence.block_ids) == self.pool.blocks_for(sequence.num_computed), "no block more than the tokens need"
            self.progress[sequence.principal] = self.steps
        for sequence in encoding:
            if sequence not in self.scheduled:
                self.scheduled.add(sequence)
                self.first_scheduled.append(sequence)

    def check_state(self) -> None:
        running, waiting = self.scheduler.running, list(self.scheduler.waiting)
        assert len(running) <= self.sizes.max_num_seqs
        slots = [s.slot for s in running]
        assert None not in slots
        assert len(set(slots)) == len(slots)
        held = Counter(block for s in running for block in s.block_ids)
        assert 0 not in held
        assert len(held) + self.pool.num_free == self.pool.capacity, "a block is lost"
        assert all(self.pool.references(block) == count for block, count in held.items())
        last = Counter(s.block_ids[-1] for s in running if s.num_computed % self.sizes.block)
        assert all(held[block] == 1 for block in last), "a block that is written to is shared"
        assert all(s.slot is None and not s.block_ids and s.num_computed == 0 for s in waiting)
        assert set(self.alive) == {s.principal for s in [*running, *waiting]}
        for sequence in running:
            if sequence.group is not None:
                assert all(beam.status is Status.RUNNING for beam in sequence.group.beams)
                assert len(sequence.group.beams) <= sequence.group.width
            assert sequence.num_known <= sequence.max_tokens
            assert sequence.num_computed <= sequence.num_tokens
            assert len(sequence.digests) <= sequence.num_known // self.sizes.block
            assert 0 <= sequence.in_flight <= 2 * self.sizes.async_scheduling
        self.preempted = self.scheduler.preemptions
        self.peak_running = max(self.peak_running, len(running))
        assert running == sorted(running, key=lambda s: s.rank)
        assert waiting == sorted(waiting, key=lambda s: s.rank)
        assert self.scheduler.waiting_tokens == sum(len(s.prompt_ids) for s in waiting if s.leader is None)
        # On the way to a pause nobody is admitted who came after it was asked for, whatever their priority.
        admissible = (s for s in self.alive if s.rank[1] < self.scheduler._door)
        oldest = min(admissible, key=lambda s: s.rank, default=None)
        if oldest is not None:
            if oldest is not self.oldest:
                self.oldest, self.progress[oldest] = oldest, self.steps
            # Whoever comes to the head of the line by priority waits for what runs to end, at worst.
            bound = 2 * (self.sizes.max_model_len if self.sizes.by_priority else self.sizes.block) + 4
            assert self.steps - self.progress[oldest] <= bound, "the first in line starves"

    def settle(self) -> None:
        """Let everything end; the time is bounded by the work."""
        work = sum(2 + len(tokens) + -(-len(s.prompt_ids) // self.sizes.block) for s, tokens in self.alive.items())
        bound = self.steps + 20 + 4 * work
        while self.core.has_work:
            self.step()
            assert self.steps < bound, "it must come to an end"
        assert not self.alive
        assert self.pool.num_free == self.pool.capacity

    def drain(self) -> None:
        """Let everything end, and look for what is lost."""
        self.settle()
        assert not self.scheduler.running
        assert not self.scheduler.waiting
        everything = self.pool.allocate(self.pool.capacity)
        assert sorted(everything or []) == list(range(1, self.sizes.num_blocks))
        self.pool.release(everything or [])
        assert not self.scheduler.tables.rows(range(self.sizes.max_num_seqs), self.pool.blocks_for(self.sizes.max_model_len)).any()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            while self.rng.random() < self.sizes.arrivals:
                self.add()
            if self.rng.random() < self.sizes.resets:
                self.events += 1
                self.core.reset_prefix_cache()
                assert self.pool.num_published == 0
            if self.rng.random() < self.sizes.pauses:
                self.pause()
            if self.alive and self.rng.random() < self.sizes.aborts:
                self.abort(self.rng.choice(list(self.alive)))
            if len(self.alive) > 6 * self.sizes.max_num_seqs:
                for sequence in self.rng.sample(list(self.alive), 3 * self.sizes.max_num_seqs):
                    self.abort(sequence)
            self.step()
        self.drain()
