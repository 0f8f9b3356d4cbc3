"""What the prefix cache costs where it finds nothing: prompts that have nothing in common, with the cache and without.

    python -m benchmarks.prefix_cost [MODEL] [--prompts 12] [--length 1000]

First the host's work alone, on a runner that computes nothing, as `xlaserve bench host` has it; then whole requests on the model, both
engines in turn.
The share is the host's extra work over the time of a request, which is steadier than the difference of two times.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time

from xlaserve import LLM, SamplingParams
from xlaserve.bench.host import BLOCK, NoDevice
from xlaserve.buckets.ladder import make_ladder
from xlaserve.engine.core import EngineCore
from xlaserve.engine.graph_table import GraphTable
from xlaserve.engine.outputs import RequestMetrics
from xlaserve.engine.scheduler import Scheduler
from xlaserve.engine.sequence import Sequence
from xlaserve.paged.block_pool import BlockPool

REPEATS = 200


def host_seconds(length: int, *, caching: bool) -> list[float]:
    """Seconds of host work for each of `REPEATS` prompts that differ from their first token on: admission, chunks, one token."""
    pool = BlockPool(16 * -(-length // BLOCK), BLOCK)
    most, budget = length + 1, 512
    ladder = make_ladder(max_model_len=most, max_num_seqs=1, max_num_batched_tokens=budget, block_size=BLOCK, static_width=False)
    scheduler = Scheduler(ladder, pool, max_num_seqs=1, max_model_len=most, max_num_batched_tokens=budget, prefix_caching=caching)
    core = EngineCore(scheduler, NoDevice(), pool, 1, GraphTable(ladder, {}))  # type: ignore[arg-type]
    taken: list[float] = []
    for number in range(REPEATS):
        ids = list(range(number, number + length))
        params = SamplingParams(max_tokens=1)
        core.add(Sequence(f"r{number}", 0, ids, params, frozenset(), frozenset(), 0, length + 1, RequestMetrics(0.0)))
        begin = time.perf_counter()
        while core.has_work:
            core.step()
        taken.append(time.perf_counter() - begin)
    assert core.stats().prefix_cache_hits == 0
    return taken


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--prompts", type=int, default=12, help="for each engine (default: 12)")
    parser.add_argument("--length", type=int, default=1000, help="tokens of a prompt (default: 1000)")
    args = parser.parse_args()
    host = {
        caching: statistics.median(itertools.chain(*(host_seconds(args.length, caching=caching) for _ in range(3))))
        for caching in (False, True)
    }
    extra = host[True] - host[False]
    print(f"host work for a prompt of {args.length} tokens, us: {host[False] * 1e6:.0f} without the cache, {host[True] * 1e6:.0f} with it")
    rng = random.Random(0)
    taken: dict[bool, list[float]] = {False: [], True: []}
    with (
        LLM(args.model, max_model_len=2 * args.length, enable_prefix_caching=False) as off,
        LLM(args.model, max_model_len=2 * args.length, enable_prefix_caching=True) as on,
    ):
        for _ in range(args.prompts):
            for caching, llm in ((False, off), (True, on)):
                prompt = [rng.randrange(100, 20000) for _ in range(args.length)]
                begin = time.perf_counter()
                llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1))
                taken[caching].append(time.perf_counter() - begin)
        hits = on.stats().prefix_cache_hits
    print(f"a request, ms, median [least, most] of {args.prompts}; {hits} tokens found:")
    for caching, name in ((False, "without the cache"), (True, "with it")):
        times = sorted(1e3 * t for t in taken[caching])
        print(f"  {name:<18}{statistics.median(times):8.1f} [{times[0]:.1f}, {times[-1]:.1f}]")
    whole = statistics.median(taken[False])
    print(f"the cache's host work is {extra / whole:.3%} of a request; the medians' ratio is {statistics.median(taken[True]) / whole:.4f}")


if __name__ == "__main__":
    main()
