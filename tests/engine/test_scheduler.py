"""Continuous batching as a simulation: the real scheduler, batches and core over a fake device that notices every mistake.

A hundred thousand events: random arrivals, ends, aborts and resets of the prefix cache, requests for several completions and prompts
that begin alike, over pools so small that sequences preempt each other.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.engine.fake_device import VOCAB, FakeRunner, expected_tokens
from xlaserve.buckets.ladder import make_ladder
from xlaserve.engine.core import EngineCore
from xlaserve.engine.messages import TokenEvent
from xlaserve.engine.outputs import RequestMetrics
from xlaserve.engine.scheduler import Decision, Scheduler
from xlaserve.engine.sequence import Sequence, Status, stream_seed
from xlaserve.paged.block_pool import BlockPool
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
    longest_prompt: int = 120
    longest_output: int = 60
    arrivals: float = 0.3
    aborts: float = 0.01
    alike: float = 0.0  # share of prompts that begin as others do
    several: float = 0.0  # share of requests for two to four completions
    resets: float = 0.0
    pauses: float = 0.0
    prefix_caching: bool = True
    by_priority: bool = False


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
        self.core = EngineCore(self.scheduler, FakeRunner(s.num_blocks, s.block, s.max_num_seqs), self.pool, s.max_num_seqs)  # type: ignore[arg-type]
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
            self.progress[sequence] = self.steps
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
        assert set(self.alive) == set(running) | set(waiting)
        for sequence in running:
            assert sequence.num_known <= sequence.max_tokens
            assert sequence.num_computed <= sequence.num_tokens
            assert len(sequence.digests) <= sequence.num_known // self.sizes.block
            assert 0 <= sequence.in_flight <= 2
        self.preempted = self.scheduler.preemptions
        self.peak_running = max(self.peak_running, len(running))
        assert running == sorted(running, key=lambda s: s.rank)
        assert waiting == sorted(waiting, key=lambda s: s.rank)
        assert self.scheduler.waiting_tokens == sum(len(s.prompt_ids) for s in waiting if s.leader is None)
        oldest = min(self.alive, key=lambda s: s.rank, default=None)
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


LOADS: dict[str, Sizes] = {
    "roomy": Sizes(num_blocks=200),
    "tight": Sizes(num_blocks=17),
    "one sequence fills the pool": Sizes(num_blocks=17, longest_prompt=255, longest_output=250, arrivals=0.1),
    "long outputs": Sizes(num_blocks=24, longest_prompt=10, longest_output=200, arrivals=0.5),
    "one slot": Sizes(num_blocks=40, max_num_seqs=1, batched=16, arrivals=0.05),
    "three slots": Sizes(num_blocks=30, max_num_seqs=3, batched=50),
    "many slots": Sizes(num_blocks=120, max_num_seqs=33, batched=100, arrivals=0.8, longest_output=20),
    "smallest budget": Sizes(num_blocks=40, max_num_seqs=8, batched=23),
    "blocks of one": Sizes(num_blocks=257, block=1, longest_prompt=60, batched=20),
    "blocks of 128": Sizes(
        num_blocks=6, block=128, max_model_len=600, batched=256, longest_prompt=500, longest_output=40, static_width=True
    ),
    "static widths": Sizes(num_blocks=60, max_model_len=400, longest_prompt=380, static_width=True),
    "odd length": Sizes(num_blocks=20, max_model_len=249, longest_prompt=248, longest_output=249),
    "aborts": Sizes(num_blocks=20, aborts=0.5, arrivals=0.5),
    "whole prompts": Sizes(num_blocks=40, batched=512, longest_prompt=250),
    "alike": Sizes(num_blocks=120, alike=0.9),
    "alike and tight": Sizes(num_blocks=17, alike=0.9, resets=0.01),
    "several": Sizes(num_blocks=60, several=0.7, alike=0.5, arrivals=0.1),
    "several and tight": Sizes(num_blocks=17, several=0.7, alike=0.5, aborts=0.1, resets=0.01, arrivals=0.1),
    "several without a cache": Sizes(num_blocks=17, several=0.7, arrivals=0.1, prefix_caching=False),
    "priorities": Sizes(num_blocks=17, by_priority=True, alike=0.5, several=0.2, arrivals=0.2),
    "pauses": Sizes(num_blocks=40, pauses=0.03, several=0.2, alike=0.5, aborts=0.05),
    "pauses and tight": Sizes(num_blocks=17, pauses=0.03, several=0.2, resets=0.01, by_priority=True, prefix_caching=False),
    "no cache": Sizes(num_blocks=20, alike=0.9, prefix_caching=False),
}


@pytest.mark.parametrize("load", LOADS)
def test_storms(load: str) -> None:
    simulation = Simulation(LOADS[load], seed=1)
    simulation.run(2000)
    assert len(simulation.arrived) > 50
    order = {sequence: i for i, sequence in enumerate(simulation.arrived)}
    ranks = [order[sequence] for sequence in simulation.first_scheduled if sequence.leader is None]
    assert ranks == sorted(ranks) or simulation.sizes.by_priority, "first come, first scheduled"
    stats = simulation.core.stats()
    assert (stats.prefix_cache_hits > 0) <= simulation.sizes.prefix_caching
    assert stats.prefix_cache_hits <= stats.prefix_cache_queries
    if simulation.sizes.alike and simulation.sizes.prefix_caching:
        assert stats.prefix_cache_hits > 0.02 * stats.prefix_cache_queries
    if load in ("tight", "one sequence fills the pool", "long outputs", "blocks of 128", "odd length", "alike and tight", "no cache"):
        assert simulation.preempted > 0, "this load is to preempt"
    if load == "roomy":
        assert simulation.preempted == 0
        assert simulation.peak_running == simulation.sizes.max_num_seqs


@pytest.mark.parametrize("seed", range(60))
def test_small_storms_of_random_sizes(seed: int) -> None:
    rng = random.Random(seed)
    block = rng.choice((1, 2, 4, 16))
    length = rng.randint(4, 80)
    seqs = rng.choice((1, 2, 3, 5, 8))
    sizes = Sizes(
        num_blocks=-(-length // block) + 1 + rng.choice((0, 0, 1, 5, 30)),
        block=block,
        max_model_len=length,
        max_num_seqs=seqs,
        batched=seqs + block - 1 + rng.choice((0, 1, 7, 64)),
        static_width=rng.random() < 0.3,
        longest_prompt=length - 1,
        longest_output=length,
        arrivals=rng.choice((0.1, 0.5)),
        aborts=rng.choice((0.0, 0.1)),
        alike=rng.choice((0.0, 0.8)),
        several=rng.choice((0.0, 0.3)),
        resets=rng.choice((0.0, 0.02)),
        prefix_caching=rng.random() < 0.8,
        by_priority=rng.random() < 0.3,
    )
    simulation = Simulation(sizes, seed=seed)
    simulation.run(250)


def test_a_second_token_does_not_wait_for_the_first_to_be_read() -> None:
    """One step late: a sequence is computed in every iteration, and its token comes out one iteration after."""
    simulation = Simulation(Sizes(num_blocks=50))
    sequence = simulation.add([1, 2, 3], most=10, stop=frozenset())
    seen = []
    for _ in range(11):
        simulation.step()
        seen.append(len(sequence.output_ids))
    assert seen == list(range(11))
    assert sequence.finish_reason == "length"
    assert not simulation.core.has_work


def test_a_long_prompt_stalls_nobody() -> None:
    """Running sequences get a token in every iteration while a long prompt is encoded chunk by chunk."""
    simulation = Simulation(Sizes(num_blocks=100, batched=32))
    short = [simulation.add([i, 2, 3], most=30, stop=frozenset()) for i in range(3)]
    for _ in range(3):
        simulation.step()
    long = simulation.add(list(range(90)) + list(range(90)), most=5, stop=frozenset())
    before = [len(s.output_ids) for s in short]
    for _ in range(10):
        simulation.step()
    assert [len(s.output_ids) - b for s, b in zip(short, before, strict=True)] == [10] * 3
    assert long.num_computed >= 160
    simulation.drain()


def test_newest_is_preempted_and_oldest_never() -> None:
    simulation = Simulation(Sizes(num_blocks=17, max_num_seqs=4))
    sequences = [simulation.add([i] * 10, most=100, stop=frozenset()) for i in range(4)]
    simulation.drain()
    counts = [sequence.metrics.num_preemptions for sequence in sequences]
    assert counts[0] == 0
    assert counts[-1] > 0
    assert simulation.preempted == sum(counts)


def test_a_chunked_prompt_keeps_a_claim_on_the_blocks_it_still_needs() -> None:
    """Whoever comes after long prompts under way is not let in on blocks that they are about to take."""
    simulation = Simulation(Sizes(num_blocks=45, batched=256))
    for prompt, most in (([1] * 40, 60), ([2] * 200, 5), ([3] * 200, 5), ([4] * 200, 5)):
        simulation.add(prompt, most=most, stop=frozenset())
    simulation.step()
    assert [sequence.num_computed for sequence in simulation.arrived] == [40, 64, 64, 64]
    simulation.add([5] * 60, most=60, stop=frozenset())
    simulation.drain()
    assert simulation.preempted == 0


def test_a_sequence_that_is_in_the_step_keeps_its_blocks() -> None:
    """An older prompt that finds no block does not take those of a younger sequence that this iteration computes: it waits."""
    simulation = Simulation(Sizes(num_blocks=29, batched=128))
    short, first, second, young = (
        simulation.add(prompt, most=most, stop=frozenset())
        for prompt, most in (([1] * 15, 40), ([2] * 200, 5), ([3] * 200, 5), ([4] * 15, 12))
    )
    simulation.step()
    assert [s.num_computed for s in (short, first, second, young)] == [15, 32, 32, 15]
    stalled = 0
    while second.num_computed < 200:
        before = second.num_computed
        simulation.step()
        stalled += before > 32 and second.num_computed == before
    assert stalled > 0, "the pool must have been too small for a while"
    simulation.drain()
    assert young.metrics.num_preemptions == 0


def test_finishing_twice_is_harmless() -> None:
    simulation = Simulation(Sizes(num_blocks=50))
    waiting, running = (simulation.add([i, 2, 3], most=9, stop=frozenset()) for i in range(2))
    simulation.step()
    third = simulation.add([5], most=9, stop=frozenset())
    for sequence in (waiting, running, third):
        simulation.abort(sequence)
        simulation.core.finish(sequence, "stop", "text")
        assert (sequence.finish_reason, sequence.stop_reason) == ("abort", None)
    simulation.drain()
    assert simulation.scheduler.finished == {"abort": 3}


def run_alone(simulation: Simulation, prompt: list[int], **options: object) -> Sequence:
    sequence = simulation.add(prompt, most=3, stop=frozenset(), **options)  # type: ignore[arg-type]
    simulation.settle()
    return sequence


def test_a_prefix_is_computed_once() -> None:
    simulation = Simulation(Sizes(num_blocks=100))
    prompt = list(range(90))
    assert run_alone(simulation, prompt[:70]).num_cached_tokens == 0
    computed = simulation.core.stats().scheduled_tokens
    assert run_alone(simulation, prompt).num_cached_tokens == 64, "four blocks of sixteen; the fifth was not full"
    stats = simulation.core.stats()
    assert stats.scheduled_tokens - computed == 90 - 64 + 2
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits, stats.prompt_tokens) == (160, 64, 160)


@pytest.mark.parametrize(("length", "hit"), [(1, 0), (15, 0), (16, 0), (17, 16), (32, 16), (33, 32), (64, 48)])
def test_one_token_is_always_computed(length: int, hit: int) -> None:
    simulation = Simulation(Sizes(num_blocks=100))
    prompt = list(range(length))
    run_alone(simulation, prompt)
    assert run_alone(simulation, prompt).num_cached_tokens == hit


def test_what_was_generated_is_found_too() -> None:
    """A conversation goes on from its answer."""
    simulation = Simulation(Sizes(num_blocks=100))
    first = simulation.add(list(range(20)), most=40, stop=frozenset())
    simulation.settle()
    assert run_alone(simulation, [*first.prompt_ids, *first.output_ids, 7]).num_cached_tokens == 48


def test_salts_and_resets_keep_prefixes_apart() -> None:
    simulation = Simulation(Sizes(num_blocks=100))
    prompt = list(range(40))
    run_alone(simulation, prompt)
    assert run_alone(simulation, prompt, salt="a").num_cached_tokens == 0
    assert run_alone(simulation, prompt, salt="b").num_cached_tokens == 0
    assert run_alone(simulation, prompt, salt="a").num_cached_tokens == 32
    simulation.core.reset_prefix_cache()
    assert run_alone(simulation, prompt).num_cached_tokens == 0
    assert run_alone(simulation, prompt).num_cached_tokens == 32


def test_what_runs_at_a_reset_is_not_shared_later() -> None:
    simulation = Simulation(Sizes(num_blocks=100))
    running = simulation.add(list(range(40)), most=60, stop=frozenset())
    for _ in range(5):
        simulation.step()
    simulation.core.reset_prefix_cache()
    simulation.settle()
    assert simulation.pool.num_published == 0
    assert run_alone(simulation, [*running.prompt_ids, *running.output_ids]).num_cached_tokens == 0


def test_a_preempted_sequence_finds_its_own_blocks() -> None:
    simulation = Simulation(Sizes(num_blocks=48, max_num_seqs=4))
    sequences = [simulation.add([i] * 100, most=100, stop=frozenset()) for i in range(4)]
    simulation.drain()
    assert simulation.preempted > 0
    stats = simulation.core.stats()
    once = sum(len(s.prompt_ids) + len(s.output_ids) - 1 for s in sequences)
    simulation = Simulation(Sizes(num_blocks=48, max_num_seqs=4, prefix_caching=False))
    for i in range(4):
        simulation.add([i] * 100, most=100, stop=frozenset())
    simulation.drain()
    assert once <= stats.scheduled_tokens < simulation.core.stats().scheduled_tokens
    assert stats.prefix_cache_hits == 0, "a sequence's own blocks are no hits"


def test_the_longest_unused_end_of_a_prefix_goes_first() -> None:
    simulation = Simulation(Sizes(num_blocks=17))
    old, new = list(range(80)), list(range(10, 90))
    run_alone(simulation, old)
    run_alone(simulation, new)
    run_alone(simulation, [50] * 128)
    assert run_alone(simulation, new).num_cached_tokens == 64
    assert 0 < (run_alone(simulation, old).num_cached_tokens or 0) < 64


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_the_prompt_of_several_completions_is_computed_once(*, prefix_caching: bool) -> None:
    simulation = Simulation(Sizes(num_blocks=200, prefix_caching=prefix_caching))
    simulation.add(list(range(90)) * 2, most=20, stop=frozenset(), n=4)
    for _ in range(8):
        simulation.step()
    assert simulation.scheduler.running[3].block_ids[:11] == simulation.scheduler.running[0].block_ids[:11]
    held = simulation.pool.capacity - simulation.pool.num_free
    assert held == 11 + 4, "eleven shared blocks, and one each"
    simulation.drain()
    stats = simulation.core.stats()
    assert stats.scheduled_tokens == 180 + 3 * (180 - 176) + 4 * 19
    assert stats.prompt_tokens == 4 * 180
    assert stats.allocated_token_slots - stats.used_token_slots <= 4 * 16 * stats.steps


def test_better_priorities_come_first_and_are_preempted_last() -> None:
    simulation = Simulation(Sizes(num_blocks=17, max_num_seqs=2, by_priority=True))
    priorities = (1, 0, 1, -5, 0)
    sequences = [simulation.add([i] * 10, most=120, stop=frozenset(), priority=p) for i, p in enumerate(priorities)]
    simulation.drain()
    first = [sequences.index(s) for s in simulation.first_scheduled]
    assert first == [3, 1, 4, 0, 2], "by priority, then arrival"
    assert sequences[3].metrics.num_preemptions == 0
    assert simulation.preempted > 0


def test_a_late_sequence_of_better_priority_goes_before_what_waits() -> None:
    simulation = Simulation(Sizes(num_blocks=17, max_num_seqs=1, by_priority=True))
    runs, waits = (simulation.add([i], most=20, stop=frozenset(), priority=5) for i in range(2))
    simulation.step()
    late = simulation.add([9], most=20, stop=frozenset(), priority=4)
    simulation.drain()
    assert simulation.first_scheduled == [runs, late, waits]


def test_nobody_starves_among_equals() -> None:
    """However many come later: who is in line ends after a bounded number of iterations."""
    simulation = Simulation(Sizes(num_blocks=17, max_num_seqs=2, by_priority=True))
    first = simulation.add([1] * 200, most=50, stop=frozenset(), priority=7)
    for i in range(80):
        simulation.add([i] * 5, most=5, stop=frozenset(), priority=7)
        simulation.step()
    assert first.finish_reason == "length"
    simulation.drain()


def test_priorities_do_not_count_in_order_of_arrival() -> None:
    simulation = Simulation(Sizes(num_blocks=17, max_num_seqs=1))
    sequences = [simulation.add([p + 5], most=5, stop=frozenset(), priority=p) for p in (3, 1, -2)]
    simulation.drain()
    assert simulation.first_scheduled == sequences


def test_a_hundred_thousand_events() -> None:
    """Arrivals, ends, aborts, resets and iterations over engines of random sizes, all checks at every iteration."""
    totals: Counter[str] = Counter()
    seed = 1000
    while totals["events"] < 100_000:
        rng = random.Random(seed)
        block, seqs = rng.choice((2, 4, 8)), rng.choice((2, 4, 6))
        length = rng.choice((24, 40))
        sizes = Sizes(
            num_blocks=-(-length // block) + 1 + rng.choice((0, 3, 12)),
            block=block,
            max_model_len=length,
            max_num_seqs=seqs,
            batched=seqs + block - 1 + rng.choice((1, 8, 32)),
            longest_prompt=length // 2,
            longest_output=length,
            arrivals=rng.choice((0.2, 0.5)),
            aborts=0.1,
            alike=rng.choice((0.0, 0.8)),
            several=rng.choice((0.0, 0.2)),
            resets=0.02,
            prefix_caching=rng.random() < 0.8,
            by_priority=rng.random() < 0.5,
        )
        simulation = Simulation(sizes, seed=seed)
        simulation.run(1500)
        stats = simulation.core.stats()
        totals += Counter(
            events=simulation.events + sum(stats.finished.values()) + stats.preemptions,
            preemptions=stats.preemptions,
            hits=stats.prefix_cache_hits,
            aborts=stats.finished.get("abort", 0),
        )
        seed += 1
    assert min(totals["preemptions"], totals["hits"], totals["aborts"]) > 500, totals


def test_statistics_add_up() -> None:
    simulation = Simulation(Sizes(num_blocks=200))
    prompts = [[i] * (7 + 11 * i) for i in range(12)]
    for prompt in prompts:
        simulation.add(prompt, most=6, stop=frozenset())
    simulation.step()
    stats = simulation.core.stats()
    assert stats.num_running + stats.num_waiting == 12
    assert stats.num_free_blocks < stats.num_blocks == 199
    simulation.drain()
    stats = simulation.core.stats()
    assert stats.prompt_tokens == sum(map(len, prompts))
    assert stats.generation_tokens == 12 * 6
    assert stats.scheduled_tokens == stats.prompt_tokens + 12 * 5
    assert stats.finished == {"length": 12}
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks, stats.kv_usage) == (0, 0, 199, 0.0)
    assert stats.compile_events == 0
    assert stats.used_token_slots <= stats.allocated_token_slots
