"""Each graph's time against its roofline: the engine's own executables, run by its own runner, with several lengths of context in use."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from xlaserve.bench.ceilings import Ceiling, Probe, bandwidth_probes, gemm_probes, measure
from xlaserve.bench.graph_batch import contexts_of, graph_batch
from xlaserve.bench.graph_work import RowWork, Stored, graph_work
from xlaserve.bench.roofline import Roofline
from xlaserve.bench.spread import Spread
from xlaserve.bench.table import listing, table
from xlaserve.buckets.compiler import Graph
from xlaserve.buckets.graphs import GraphSpec
from xlaserve.buckets.ladder import Bucket
from xlaserve.engine.batch import Batch
from xlaserve.engine.build import Plan, make_plan, open_stores, start_runner
from xlaserve.engine.config import EngineConfig
from xlaserve.engine.runner import Runner
from xlaserve.errors import ConfigError
from xlaserve.platforms.mesh import part_shape

_GROUP_SECONDS, _MOST_IN_GROUP = 0.1, 16
"""Runs are timed in groups that last so long, of so many at most."""
_FEWEST_GROUPS, _ENOUGH_SECONDS = 3, 2.0
"""A graph is timed no longer than that, once it has been timed a few times."""
_GEMM = {"cpu": 2048}
_LARGE_GEMM = 8192


class CeilingSizes(NamedTuple):
    """What ceilings are measured with.

    Args:
        bandwidth_bytes: bytes to read; many times what caches hold.
        gemm: rows and columns of the matrices to multiply; None for enough of the device.
    """

    bandwidth_bytes: int
    gemm: int | None


@dataclass(frozen=True, slots=True)
class Timed:
    """One graph with one length of context.

    Args:
        bucket: which.
        context: tokens of each sequence, the computed ones included.
        rows: what its rows compute.
        seconds: of a run, in each group.
        reading: bytes a second that the device has read just before and after each group, by the way that reads fastest.
    """

    bucket: Bucket
    context: int
    rows: list[RowWork]
    seconds: Spread
    reading: Spread

    def weight_shares(self, weight_bytes: float) -> Spread:
        """Of each group: weights a run's time, as a share of what was read meanwhile."""
        groups = zip(self.seconds.values, self.reading.values, strict=True)
        return Spread(tuple(weight_bytes / seconds / rate for seconds, rate in groups))


def bench_kernels(
    config: EngineConfig,
    contexts: tuple[int, ...],
    names: Sequence[str],
    iterations: int,
    sizes: CeilingSizes,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, Any], list[str], str]:
    """Time graphs and hold them against the device's ceilings, which are measured before and after; the bandwidth also meanwhile.

    Args:
        config: of the engine.
        contexts: lengths of context in use, in tokens.
        names: parts of the names of the graphs to time; empty for all.
        iterations: groups of runs that are timed of each.
        sizes: of what ceilings are measured with.
        say: told how far it is.

    Returns:
        What the engine is, the metrics, what was left out and why, and the metrics for a person.

    Raises:
        ConfigError: no graph has such a name, or none holds such a context.
    """
    plan = make_plan(config)
    buckets = [bucket for bucket in plan.ladder.buckets if not names or any(name in bucket.name for name in names)]
    if not buckets:
        raise ConfigError(f"--graphs {' '.join(names)} names none of {', '.join(bucket.name for bucket in plan.ladder.buckets)}.")
    # No others are compiled: on an accelerator each takes a while.
    context = tuple(bucket for bucket in plan.ladder.context if bucket in buckets)
    generate = tuple(bucket for bucket in plan.ladder.generate if bucket in buckets)
    plan = replace(plan, ladder=replace(plan.ladder, context=context, generate=generate))
    runner, graphs = start_runner(plan, open_stores(plan, config, say), config, say)
    device, dtypes = plan.devices[0], _dtypes(plan.spec)
    say("measuring bandwidth and matrix products")
    readers = bandwidth_probes(device, sizes.bandwidth_bytes)
    multipliers = gemm_probes(device, dtypes, sizes.gemm or _GEMM.get(device.platform, _LARGE_GEMM))
    # Products first: on shared machines everything has been slower for a while after them, for whatever reason.
    multiplying, reading = measure(multipliers), measure(readers)
    fastest = next(probe for probe in readers if probe.name == reading.usual_way)
    timed, skipped = _time_all(plan, runner, buckets, contexts, iterations, fastest, say)
    reading, multiplying = reading.joined(measure(readers)), multiplying.joined(measure(multipliers))
    lines = [(each, _roofline(plan.spec, each, reading, multiplying)) for each in timed]
    metrics = {
        "bandwidth": reading.as_json(),
        "gemm": multiplying.as_json(),
        "graphs": [_line(each, roofline, graphs[each.bucket]) for each, roofline in lines],
    }
    text = f"{_ceilings_text(reading, multiplying)}\n\n{_table(lines, graphs)}"
    return subject_of(plan), metrics, skipped, text


def subject_of(plan: Plan) -> dict[str, Any]:
    """What an engine is to be, for a result."""
    info = plan.info()
    return {
        "model": info.model_name,
        "load_format": info.load_format,
        "dtype": info.dtype,
        "quantization": info.quantization,
        "kernels": info.kernels,
        "platform": info.platform,
        "device": info.device,
        "devices": plan.limits.tensor_parallel_size,
        "max_model_len": info.max_model_len,
        "max_num_seqs": info.max_num_seqs,
        "block_size": info.block_size,
        "num_blocks": info.num_blocks,
        "plan": info.plan.splitlines(),
    }


def _dtypes(spec: GraphSpec) -> list[str]:
    """Types of matrices, and float32, which may be faster than a shorter one."""
    return sorted({"float32", *(str(np.dtype(p.dtype)) for p in spec.parameters().values() if len(p.shape) > 1)})


def _time_all(
    plan: Plan,
    runner: Runner,
    buckets: Sequence[Bucket],
    contexts: tuple[int, ...],
    iterations: int,
    fastest: Probe,
    say: Callable[[str], None],
) -> tuple[list[Timed], list[str]]:
    """Every graph with every length of context that it can have, and those for which there are too few KV blocks."""
    limits, rng = plan.limits, np.random.default_rng(0)
    timed: list[Timed] = []
    skipped: list[str] = []
    for bucket in buckets:
        for context in contexts_of(bucket, contexts, limits.block_size):
            made = graph_batch(
                bucket,
                context,
                block_size=limits.block_size,
                num_blocks=limits.num_blocks,
                spare_slot=limits.max_num_seqs,
                vocab_size=plan.model.vocab_size,
                rng=rng,
            )
            if made is None:
                blocks = bucket.rows * -(-context // limits.block_size) + 1
                skipped.append(f"{bucket.name} with {context} tokens of context: needs --num-blocks {blocks}")
                continue
            batch, rows = made
            timed.append(Timed(bucket, context, rows, *_time(runner, bucket, batch, iterations, fastest)))
            say(f"{bucket.name:<22} context {context:>6}: {timed[-1].seconds.median * 1e3:10.2f} ms")
    if not timed:
        raise ConfigError(f"--contexts {' '.join(map(str, contexts))}: no graph that was asked for holds any of them. {'; '.join(skipped)}")
    return timed, skipped


def _time(runner: Runner, bucket: Bucket, batch: Batch, iterations: int, fastest: Probe) -> tuple[Spread, Spread]:
    """Seconds of a run, in each of several groups of runs, and how fast memory was read around each: what others on a machine take of its
    bandwidth changes from one moment to the next.

    A group's clock starts when a run ends that has the others behind it, as in an engine that is always one step ahead: what the host
    does before a device can begin is not the graph's time, and is told by `bench host` and `bench latency`.
    """

    def seconds(runs: int) -> float:
        first, *_, last = [runner.run(bucket, batch).tokens for _ in range(1 + runs)]
        first.block_until_ready()
        began = time.perf_counter()
        last.block_until_ready()
        return (time.perf_counter() - began) / runs

    seconds(1)
    runs = max(1, min(_MOST_IN_GROUP, int(_GROUP_SECONDS / seconds(1))))
    found: list[float] = []
    rates = [fastest.rate()]
    enough = time.perf_counter() + _ENOUGH_SECONDS
    while len(found) < iterations and (len(found) < _FEWEST_GROUPS or time.perf_counter() < enough):
        found.append(seconds(runs))
        rates.append(fastest.rate())
    return Spread(tuple(found)), Spread(tuple((before + after) / 2 for before, after in pairwise(rates)))


def _roofline(spec: GraphSpec, timed: Timed, reading: Ceiling, multiplying: Ceiling) -> Roofline:
    stored = {name: Stored(part_shape(p), np.dtype(p.dtype).itemsize) for name, p in spec.parameters().items()}
    work = graph_work(spec.share, stored, np.dtype(spec.kv()[0].dtype).itemsize, timed.rows)
    return Roofline(work, timed.seconds.median, reading.best, multiplying.best)


def _line(timed: Timed, roofline: Roofline, graph: Graph) -> dict[str, Any]:
    return {
        "graph": timed.bucket.name,
        "rows": len(timed.rows),
        "context": timed.context,
        "ms": Spread.of(timed.seconds.values, 1e3).as_json(),
        **roofline.as_json(),
        "read_bytes_per_s": timed.reading.as_json(),
        "weight_share": timed.weight_shares(roofline.work.weight_bytes).as_json(),
        "xla": _xla_figures(graph),
    }


def _xla_figures(graph: Graph) -> dict[str, float] | None:
    """What XLA's cost analysis says of its code; None where the executable has none."""
    try:
        found: Any = graph.run.cost_analysis()  # type: ignore[attr-defined]
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    found = found[0] if isinstance(found, list) and found else found
    if not isinstance(found, dict):
        return None
    return {name: float(found[key]) for name, key in (("flops", "flops"), ("bytes", "bytes accessed")) if key in found} or None


def _ceilings_text(reading: Ceiling, multiplying: Ceiling) -> str:
    rows: list[tuple[str, str] | None] = [("ceilings", "median [min, max] of runs before and after; the largest counts")]
    rows += [(f"  GB/s     {name}", Spread.of(spread.values, 1e-9).text()) for name, spread in reading.rates.items()]
    rows += [(f"  GFLOP/s  {name}", Spread.of(spread.values, 1e-9).text()) for name, spread in multiplying.rates.items()]
    return listing(rows)


def _table(lines: Sequence[tuple[Timed, Roofline]], graphs: Any) -> str:
    head = (
        "graph",
        "tokens",
        "context",
        "MB",
        "GFLOP",
        "ms, median [min, max]",
        "GB/s",
        "%",
        "GFLOP/s",
        "%",
        "binds",
        "of roofline",
        "weights",
        "XLA MB",
        "XLA GFLOP",
    )
    rows: list[tuple[str, ...]] = []
    for timed, roofline in lines:
        xla = _xla_figures(graphs[timed.bucket]) or {}
        rows.append(
            (
                timed.bucket.name,
                f"{roofline.work.tokens}",
                f"{timed.context}",
                f"{roofline.work.bytes / 1e6:,.1f}",
                f"{roofline.work.flops / 1e9:,.2f}",
                Spread.of(timed.seconds.values, 1e3).text(2),
                f"{roofline.byte_rate / 1e9:,.1f}",
                f"{roofline.bandwidth_share:.0%}",
                f"{roofline.flops_per_second / 1e9:,.1f}",
                f"{roofline.flop_share:.0%}",
                roofline.binds,
                f"{roofline.share:.0%}",
                f"{timed.weight_shares(roofline.work.weight_bytes).median:.0%}",
                f"{xla['bytes'] / 1e6:,.1f}" if "bytes" in xla else "-",
                f"{xla['flops'] / 1e9:,.2f}" if "flops" in xla else "-",
            )
        )
    return table(head, rows)
