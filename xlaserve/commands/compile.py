"""Compile every graph that `serve` with the same flags would need, measure them, and keep all in the compile cache, or with -o in a
directory that `serve --artifacts` loads. With --target for a device that need not be here. Loads no weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from xlaserve.commands.engine_flags import add_engine_arguments, engine_options
from xlaserve.errors import ConfigError

SUMMARY = "compile a model's graphs ahead of serving it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the engine's flags and where and for what to compile."""
    add_engine_arguments(parser)
    group = parser.add_argument_group("artifacts")
    group.add_argument("-o", "--output", metavar="DIR", help="directory to make (default: the compile cache)")
    group.add_argument("--platform", dest="device", metavar="NAME", default=argparse.SUPPRESS, help="the same as --device")
    group.add_argument("--target", metavar="NAME", help="kind of device that need not be here: h100, h200, a100, trn1, trn2 or inf2")


def run(args: argparse.Namespace) -> int:
    """Prints the plan, each graph as it is ready, where the graphs are kept, and what running them costs."""
    from xlaserve.buckets.targets import AbsentDevice, target_platform
    from xlaserve.engine.build import compile_graphs, export_graphs, make_plan, measure_costs, open_stores
    from xlaserve.engine.config import EngineConfig

    config = EngineConfig(model=args.model, **engine_options(args))
    if args.output and config.artifacts:
        raise ConfigError("-o and --artifacts exclude each other: what is loaded from one directory would be missing in the other.")
    devices = config.tensor_parallel_size or 1
    plan = make_plan(config, target_platform(config.device, args.target, devices) if args.target else None)
    _say(plan.describe())
    stores = open_stores(plan, config, _say, Path(args.output).expanduser() if args.output else None)
    device = plan.platform.devices()[0]
    if isinstance(device, AbsentDevice):
        _say(f"only StableHLO is made here: {device.reason}")
        export_graphs(plan, stores, _say)
        return 0
    graphs = compile_graphs(plan, stores, config, _say)
    if not args.target:
        measure_costs(plan, stores, graphs, _say)
    compiled = sum(graph.source != "loaded" for graph in graphs.values())
    _say(f"{len(graphs)} graphs are ready, {compiled} of them compiled now")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
