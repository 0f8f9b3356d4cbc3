"""What the host does per iteration, without a device: scheduling, input preparation and output processing, in microseconds.

A runner that computes nothing stands in for the device, so a step takes as long as the host needs for it. Sequences are 1000 tokens long
and generate; text is made from tokens in the same thread, as `LLM` does it, by a tokenizer that costs next to nothing.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import time
from collections.abc import Sequence as Sequences
from typing import Any

import numpy as np

from xlaserve.bench.spread import Spread
from xlaserve.bench.table import table
from xlaserve.buckets.graphs import StepOutput
from xlaserve.buckets.ladder import make_ladder
from xlaserve.engine.core import EngineCore
from xlaserve.engine.graph_table import GraphTable
from xlaserve.engine.output_processor import OutputProcessor, Request
from xlaserve.engine.outputs import RequestMetrics
from xlaserve.engine.scheduler import Scheduler
from xlaserve.engine.sequence import Sequence
from xlaserve.paged.block_pool import BlockPool
from xlaserve.sampling.params import SamplingParams

BLOCK, LENGTH, PROMPT = 16, 4096, 1000
MOST_RUNNING, MOST_ITERATIONS = 1024, 2500
"""More, and sequences would reach their longest."""
_FUNCTIONS_SHOWN = 25


class NoDevice:
    """Gives zeros for every graph, at once."""

    def run(self, bucket: Any, batch: Any, mask: Any) -> Any:
        return StepOutput(np.zeros(bucket.rows, np.int32), np.zeros((bucket.rows, 0), np.int32))  # type: ignore[arg-type]


class Letters:
    """Stands in for a tokenizer: every token is a letter."""

    def stream(self, *, skip_special_tokens: bool = True) -> Letters:
        return self

    def step(self, token: int) -> str:
        return "a"

    def flush(self) -> str:
        return ""


def engine(running: int, *, prefix_caching: bool) -> tuple[EngineCore, OutputProcessor]:
    """An engine with `running` sequences, all of them generating."""
    pool = BlockPool(running * LENGTH // BLOCK + 1, BLOCK)
    budget = 2048 + running
    ladder = make_ladder(max_model_len=LENGTH, max_num_seqs=running, max_num_batched_tokens=budget, block_size=BLOCK, static_width=False)
    scheduler = Scheduler(
        ladder, pool, max_num_seqs=running, max_model_len=LENGTH, max_num_batched_tokens=budget, prefix_caching=prefix_caching
    )
    core = EngineCore(scheduler, NoDevice(), pool, running, GraphTable(ladder, {}))  # type: ignore[arg-type]
    processor = OutputProcessor(Letters())  # type: ignore[arg-type]
    params = SamplingParams(temperature=0.8, max_tokens=None)
    for i in range(running):
        ids = [i + j for j in range(PROMPT)]
        metrics = RequestMetrics(0.0)
        sequence = Sequence(f"r{i}", 0, ids, params, frozenset({1}), frozenset({1}), i, LENGTH, metrics)
        processor.add(Request(f"r{i}", None, ids, (sequence,), metrics))
        core.add(sequence)
    while any(not sequence.output_ids for sequence in scheduler.running) or scheduler.waiting:
        processor.process(core.step())
    return core, processor


def measure(running: int, iterations: int, *, prefix_caching: bool) -> tuple[Spread, Spread, Spread]:
    """Microseconds of `core.step`, of making outputs from its events, and of both."""
    core, processor = engine(running, prefix_caching=prefix_caching)
    stepping: list[float] = []
    processing: list[float] = []
    for _ in range(iterations):
        start = time.perf_counter()
        events = core.step()
        between = time.perf_counter()
        processor.process(events)
        processing.append(time.perf_counter() - between)
        stepping.append(between - start)
    both = (step + output for step, output in zip(stepping, processing, strict=True))
    return Spread.of(stepping, 1e6), Spread.of(processing, 1e6), Spread.of(both, 1e6)


def bench_host(running: Sequences[int], iterations: int) -> tuple[dict[str, Any], str]:
    """Time iterations at several numbers of running sequences.

    Args:
        running: how many sequences run, one number after the other.
        iterations: iterations timed for each.

    Returns:
        The metrics, and the same for a person.
    """
    metrics: dict[str, Any] = {}
    rows: list[tuple[str, ...]] = []
    for count in running:
        core, outputs, total = measure(count, iterations, prefix_caching=True)
        plain = measure(count, iterations, prefix_caching=False)[2]
        spreads = {"core_us": core, "outputs_us": outputs, "total_us": total, "total_without_prefix_cache_us": plain}
        metrics[str(count)] = {name: spread.as_json((99,)) for name, spread in spreads.items()}
        middle = f"{total.percentile(99):,.0f}"
        rows.append((str(count), *(f"{spread.median:,.0f}" for spread in (core, outputs, total)), middle, f"{plain.median:,.0f}"))
    head = ("running", "core us", "outputs us", "total us", "total p99", "without prefix cache")
    return metrics, table(head, rows, left=0)


def profile_host(running: int, iterations: int) -> str:
    """Where the time of iterations goes, by function, from Python's profiler; it slows down what it looks at."""
    core, processor = engine(running, prefix_caching=True)
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(iterations):
        processor.process(core.step())
    profile.disable()
    text = io.StringIO()
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(_FUNCTIONS_SHOWN)
    return text.getvalue().strip()
