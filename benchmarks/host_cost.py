"""What the host does per iteration, without a device: scheduling, input preparation and output processing, in microseconds.

    python benchmarks/host_cost.py [--profile]

A runner that computes nothing stands in for the device, so a step takes as long as the host needs for it. Sequences are 1000 tokens long
and generate; text is made from tokens in the same thread, as `LLM` does it, by a tokenizer that costs next to nothing.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from typing import Any

import numpy as np

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


def measure(running: int, steps: int, *, prefix_caching: bool) -> tuple[float, float]:
    """Median microseconds of `core.step`, and of making outputs from its events."""
    core, processor = engine(running, prefix_caching=prefix_caching)
    stepping: list[float] = []
    processing: list[float] = []
    for _ in range(steps):
        start = time.perf_counter()
        events = core.step()
        between = time.perf_counter()
        processor.process(events)
        processing.append(time.perf_counter() - between)
        stepping.append(between - start)
    return float(np.median(stepping)) * 1e6, float(np.median(processing)) * 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="iterations per row (default: 1000)")
    parser.add_argument("--profile", action="store_true", help="show where the time goes at 64 sequences, instead")
    args = parser.parse_args()
    if args.profile:
        core, processor = engine(64, prefix_caching=True)
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(args.steps):
            processor.process(core.step())
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return
    print(f"{'running':>8}{'core us':>10}{'outputs us':>12}{'total us':>10}{'no cache':>10}")
    for running in (1, 8, 64, 256):
        core, outputs = measure(running, args.steps, prefix_caching=True)
        plain = sum(measure(running, args.steps, prefix_caching=False))
        print(f"{running:>8}{core:>10.0f}{outputs:>12.0f}{core + outputs:>10.0f}{plain:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
