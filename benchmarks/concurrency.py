"""Tokens per second of the demo model (or another) at several numbers of requests at once, and how long the engine takes to get ready.

    python benchmarks/concurrency.py [MODEL] [--requests 1 8 32] [--input-len 128] [--output-len 64] [--repeats 5]

Prompts are random token ids, generation is greedy and ignores ends of sequence, so every run does the same work. Prints medians with
the spread, and as JSON with `--json FILE`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from xlaserve import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    began = time.perf_counter()
    llm = LLM(args.model, max_model_len=args.max_model_len)
    ready = time.perf_counter() - began
    print(f"ready in {ready:.1f} s (Python, weights, graphs from the compile cache or compiled)")
    params = SamplingParams(temperature=0, max_tokens=args.output_len, ignore_eos=True)
    rng = random.Random(0)
    results = []
    print(f"{'requests':>8} {'output tok/s':>24} {'time to first token ms':>26}   ({args.input_len} in, {args.output_len} out)")
    for requests in args.requests:
        speeds, firsts = [], []
        for _ in range(args.repeats):
            prompts = [[rng.randrange(1000, 40000) for _ in range(args.input_len)] for _ in range(requests)]
            start = time.perf_counter()
            outputs = llm.generate(prompts, params)
            speeds.append(requests * args.output_len / (time.perf_counter() - start))
            firsts += [(o.metrics.first_token_time - o.metrics.arrival_time) * 1e3 for o in outputs if o.metrics.first_token_time]
        results.append({"requests": requests, "output_tokens_per_s": speeds, "time_to_first_token_ms": firsts})
        print(f"{requests:>8} {_spread(speeds):>24} {_spread(firsts):>26}")
    if args.json:
        args.json.write_text(json.dumps({"ready_s": ready, "results": results, "arguments": vars(args)}, default=str, indent=1))


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]"


if __name__ == "__main__":
    main()
