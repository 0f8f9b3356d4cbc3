"""Continuous batching as a simulation: the real scheduler, batches and core over a fake device that notices every mistake.

A hundred thousand events: random arrivals, ends, aborts and resets of the prefix cache, requests for several completions and prompts
that begin alike, over pools so small that sequences preempt each other.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from tests.engine.simulation import Simulation, Sizes
from xlaserve.engine.sequence import Sequence

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
    "shared places": Sizes(num_blocks=60, batched=144, arrivals=0.8, compact=True),
    "shared places, tight": Sizes(num_blocks=17, batched=55, several=0.3, compact=True),
    "odd length": Sizes(num_blocks=20, max_model_len=249, longest_prompt=248, longest_output=249),
    "aborts": Sizes(num_blocks=20, aborts=0.5, arrivals=0.5),
    "whole prompts": Sizes(num_blocks=40, batched=512, longest_prompt=250),
    "alike": Sizes(num_blocks=120, alike=0.9),
    "alike and tight": Sizes(num_blocks=17, alike=0.9, resets=0.01),
    "several": Sizes(num_blocks=60, several=0.7, alike=0.5, arrivals=0.1),
    "several and tight": Sizes(num_blocks=17, several=0.7, alike=0.5, aborts=0.1, resets=0.01, arrivals=0.1),
    "several without a cache": Sizes(num_blocks=17, several=0.7, arrivals=0.1, prefix_caching=False),
    "priorities": Sizes(num_blocks=17, by_priority=True, alike=0.5, several=0.2, arrivals=0.2),
    "searches": Sizes(num_blocks=120, beams=0.5, arrivals=0.1, alike=0.5, longest_output=40),
    "searches and tight": Sizes(num_blocks=21, beams=0.5, arrivals=0.1, alike=0.5, aborts=0.05, resets=0.01, longest_output=40),
    "searches without a cache": Sizes(num_blocks=21, beams=0.7, arrivals=0.1, prefix_caching=False, longest_output=40),
    "searches by priority": Sizes(num_blocks=40, beams=0.5, several=0.3, by_priority=True, arrivals=0.1, longest_output=40),
    "searches in few slots": Sizes(num_blocks=40, max_num_seqs=4, batched=19, beams=0.5, arrivals=0.1, longest_output=40),
    "pauses": Sizes(num_blocks=40, pauses=0.03, several=0.2, alike=0.5, aborts=0.05),
    "pauses and tight": Sizes(num_blocks=17, pauses=0.03, several=0.2, resets=0.01, by_priority=True, prefix_caching=False),
    "searches and pauses": Sizes(num_blocks=40, beams=0.5, pauses=0.03, arrivals=0.1, longest_output=40),
    "no cache": Sizes(num_blocks=20, alike=0.9, prefix_caching=False),
    "not ahead": Sizes(num_blocks=17, alike=0.5, several=0.2, aborts=0.1, async_scheduling=False),
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
    if simulation.sizes.alike and simulation.sizes.prefix_caching and not simulation.sizes.beams:
        assert stats.prefix_cache_hits > 0.02 * stats.prefix_cache_queries
    assert (simulation.runner.copies > 100) == bool(simulation.sizes.beams), "searches part inside a block"
    if load in (
        "searches and tight",
        "searches without a cache",
        "tight",
        "one sequence fills the pool",
        "long outputs",
        "blocks of 128",
        "odd length",
        "alike and tight",
        "no cache",
    ):
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
        beams=rng.choice((0.0, 0.3)),
        resets=rng.choice((0.0, 0.02)),
        prefix_caching=rng.random() < 0.8,
        by_priority=rng.random() < 0.3,
        async_scheduling=rng.random() < 0.8,
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


def test_without_asynchronous_scheduling_a_token_comes_out_of_its_own_iteration() -> None:
    simulation = Simulation(Sizes(num_blocks=50, async_scheduling=False))
    sequence = simulation.add([1, 2, 3], most=10, stop=frozenset())
    for count in range(1, 11):
        simulation.step()
        assert len(sequence.output_ids) == count
    assert simulation.core.stats().steps == 10, "nothing is computed in vain"
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


def test_a_hundred_thousand_events(report: Callable[[str], None]) -> None:
    """Arrivals, ends, aborts, forks, pauses, resets and iterations over engines of random sizes, all checks at every iteration."""
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
            beams=rng.choice((0.0, 0.1)),
            pauses=rng.choice((0.0, 0.01)),
            resets=0.02,
            prefix_caching=rng.random() < 0.8,
            by_priority=rng.random() < 0.5,
            async_scheduling=rng.random() < 0.8,
        )
        simulation = Simulation(sizes, seed=seed)
        simulation.run(1500)
        stats = simulation.core.stats()
        totals += Counter(
            events=simulation.events + sum(stats.finished.values()) + stats.preemptions,
            preemptions=stats.preemptions,
            hits=stats.prefix_cache_hits,
            aborts=stats.finished.get("abort", 0),
            forks=simulation.runner.copies,
        )
        seed += 1
    assert min(totals["preemptions"], totals["hits"], totals["aborts"], totals["forks"]) > 500, totals
    report(f"scheduler fuzz: {dict(totals)} in {seed - 1000} engines, every invariant checked at every iteration")


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
