"""Continuous batching as a simulation: the real scheduler, batches and core over a fake device that notices every mistake.

Tens of thousands of iterations with random arrivals, ends and aborts, over pools so small that sequences preempt each other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from tests.engine.fake_device import VOCAB, FakeRunner, expected_tokens
from xlaserve.buckets.ladder import make_ladder
from xlaserve.engine.core import EngineCore
from xlaserve.engine.outputs import RequestMetrics
from xlaserve.engine.scheduler import Decision, Scheduler
from xlaserve.engine.sequence import Sequence, Status
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


@dataclass
class Simulation:
    """One engine under a random load, checked at every iteration."""

    sizes: Sizes
    seed: int = 0
    steps: int = 0
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
        self.pool = BlockPool(s.num_blocks, s.block)
        ladder = make_ladder(
            max_model_len=s.max_model_len,
            max_num_seqs=s.max_num_seqs,
            max_num_batched_tokens=s.batched,
            block_size=s.block,
            static_width=s.static_width,
        )
        self.scheduler = Scheduler(
            ladder, self.pool, max_num_seqs=s.max_num_seqs, max_model_len=s.max_model_len, max_num_batched_tokens=s.batched
        )
        self.core = EngineCore(self.scheduler, FakeRunner(s.num_blocks, s.block, s.max_num_seqs), self.pool, s.max_num_seqs)  # type: ignore[arg-type]
        schedule = self.scheduler.schedule

        def checked() -> Decision | None:
            decision = schedule()
            if decision is not None:
                self.check_decision(decision)
            return decision

        self.scheduler.schedule = checked  # type: ignore[method-assign]

    def add(self, prompt: list[int] | None = None, most: int | None = None, stop: frozenset[int] | None = None) -> Sequence:
        s, rng = self.sizes, self.rng
        if prompt is None:
            scale = rng.choice((3, 20, s.longest_prompt))
            prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, min(scale, s.max_model_len - 1)))]
        room = s.max_model_len - len(prompt)
        most = min(room, most or rng.randint(1, s.longest_output))
        if stop is None:
            stop = frozenset(rng.sample(range(VOCAB), rng.choice((0, 0, 1, 5))))
        least = rng.choice((0, 0, 1, min(5, most)))
        params = SamplingParams(max_tokens=most, min_tokens=least, temperature=rng.choice((0.0, 1.0)))
        seed = rng.getrandbits(64)
        sequence = Sequence(
            f"r{len(self.arrived)}", 0, prompt, params, stop, frozenset(sorted(stop)[:1]), seed, len(prompt) + most, RequestMetrics(0.0)
        )
        self.alive[sequence] = expected_tokens(prompt, seed=seed, count=most, stop_ids=stop, min_tokens=least)
        self.arrived.append(sequence)
        self.progress[sequence] = self.steps
        self.by_key[sequence.key] = sequence
        self.core.add(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        self.core.finish(sequence, "abort")
        assert sequence.finish_reason == "abort"
        del self.alive[sequence]

    def step(self) -> None:
        self.steps += 1
        before = {sequence: len(sequence.output_ids) for sequence in self.alive}
        for event in self.core.step():
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
        held = [block for s in running for block in s.block_ids]
        assert len(set(held)) == len(held), "two sequences hold one block"
        assert 0 not in held
        assert len(held) + self.pool.num_free == self.pool.capacity, "a block is lost"
        assert all(s.slot is None and not s.block_ids and s.num_computed == 0 for s in waiting)
        assert set(self.alive) == set(running) | set(waiting)
        for sequence in running:
            assert sequence.num_known <= sequence.max_tokens
            assert sequence.num_computed <= sequence.num_tokens
            assert 0 <= sequence.in_flight <= 2
        self.preempted = self.scheduler.preemptions
        self.peak_running = max(self.peak_running, len(running))
        oldest = next(iter(self.alive), None)
        if oldest is not None:
            if oldest is not self.oldest:
                self.oldest, self.progress[oldest] = oldest, self.steps
            assert self.steps - self.progress[oldest] <= 2 * self.sizes.block + 4, "the oldest sequence starves"

    def drain(self) -> None:
        """Let everything end; the time is bounded by the work."""
        work = sum(2 + len(tokens) + -(-len(s.prompt_ids) // self.sizes.block) for s, tokens in self.alive.items())
        bound = self.steps + 20 + 4 * work
        while self.core.has_work:
            self.step()
            assert self.steps < bound, "it must come to an end"
        assert not self.alive
        assert self.pool.num_free == self.pool.capacity
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
}


@pytest.mark.parametrize("load", LOADS)
def test_storms(load: str) -> None:
    simulation = Simulation(LOADS[load], seed=1)
    simulation.run(2000)
    assert len(simulation.arrived) > 50
    order = {sequence: i for i, sequence in enumerate(simulation.arrived)}
    ranks = [order[sequence] for sequence in simulation.first_scheduled]
    assert ranks == sorted(ranks), "first come, first scheduled"
    if load in ("tight", "one sequence fills the pool", "long outputs", "blocks of 128", "odd length"):
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
    """Whoever comes after a long prompt is not let in on blocks that the prompt is about to take."""
    simulation = Simulation(Sizes(num_blocks=17, batched=32, max_num_seqs=4))
    simulation.add([1] * 200, most=5, stop=frozenset())
    simulation.step()
    simulation.add([2] * 100, most=5, stop=frozenset())
    simulation.drain()
    assert simulation.preempted == 0


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
