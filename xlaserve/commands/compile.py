"""Compile every graph that `serve` with the same flags would need, measure them, and keep all in the compile cache, or with -o in a
directory that `serve --artifacts` loads. With --target for a device that need not be here. Loads no weights. Graphs for Neuron are linted
too: the exit status is 1 where that finds an error.
"""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from xlaserve.commands.artifacts import lint_line
from xlaserve.commands.engine_flags import add_engine_arguments, engine_options
from xlaserve.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from xlaserve.engine.artifacts import Stores
    from xlaserve.engine.build import Plan
    from xlaserve.engine.config import EngineConfig

SUMMARY = "compile a model's graphs ahead of serving it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the engine's flags and where and for what to compile."""
    add_engine_arguments(parser)
    group = parser.add_argument_group("artifacts")
    group.add_argument("-o", "--output", metavar="DIR", help="directory to make (default: the compile cache)")
    group.add_argument("--platform", dest="device", metavar="NAME", default=argparse.SUPPRESS, help="the same as --device")
    group.add_argument("--target", metavar="NAME", help="kind of device that need not be here: h100, h200, a100, trn1, trn2 or inf2")
    group.add_argument(
        "--tuning",
        metavar="DIR",
        help="artifacts that were compiled on a machine with the card: kernels are taken as they were measured there (cuda)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the plan, each graph as it is ready, where the graphs are kept, and what running them costs."""
    from xlaserve.buckets.targets import target_platform
    from xlaserve.engine.build import make_plan, open_stores
    from xlaserve.engine.config import EngineConfig

    config = EngineConfig(model=args.model, **engine_options(args))
    if args.output and config.artifacts:
        raise ConfigError("-o and --artifacts exclude each other: what is loaded from one directory would be missing in the other.")
    devices = config.tensor_parallel_size or 1
    plan = make_plan(config, target_platform(config.device, args.target, devices) if args.target else None)
    _say(plan.describe())
    stores = open_stores(plan, config, _say, Path(args.output).expanduser() if args.output else None)
    _tell_tuning(plan, stores, Path(args.tuning).expanduser() if args.tuning else None)
    _make(plan, stores, config, measured=not args.target)
    return _lint(plan, stores)


def _tell_tuning(plan: Plan, stores: Stores, given: Path | None) -> None:
    """Keep what was measured elsewhere where graphs will be, and tell what decides how kernels are computed where nothing can be measured.

    Raises:
        ConfigError: the platform's compiler measures nothing.
        ArtifactError: there are no results, or they are damaged.
    """
    from xlaserve.buckets.directories import tuning

    autotuning = plan.platform.autotuning
    if given is not None:
        if autotuning is None:
            raise ConfigError(f"tuning: the compiler for the platform {plan.platform.name} measures no kernels: leave out --tuning.")
        stores.cache.save_tuning(tuning(given))
    if autotuning is not None and not plan.platform.here:
        known = 0
        with suppress(ArtifactError):  # damaged: whoever compiles says so
            known = len(stores.cache.tuning())
        none = f"none: {autotuning.chosen_by}; --tuning DIR takes what was measured where `xlaserve compile` ran on a card"
        _say(f"tuning    {f'{known:,} kernels as they were measured' if known else none}")


def _make(plan: Plan, stores: Stores, config: EngineConfig, *, measured: bool) -> None:
    """Compile the graphs; where what compiles them is not here, keep their StableHLO."""
    from xlaserve.buckets.targets import AbsentDevice
    from xlaserve.engine.build import compile_graphs, export_graphs, measure_costs

    device = plan.platform.devices()[0]
    if isinstance(device, AbsentDevice):
        _say(f"only StableHLO is made here: {device.reason}")
        export_graphs(plan, stores, _say)
        return
    graphs = compile_graphs(plan, stores, config, _say)
    if measured:
        measure_costs(plan, stores, graphs, _say)
    compiled = sum(graph.source != "loaded" for graph in graphs.values())
    _say(f"{len(graphs)} graphs are ready, {compiled} of them compiled now")


def _lint(plan: Plan, stores: Stores) -> int:
    """Lint the graphs where the platform has a profile for that, and keep the report beside them; 1 where there are errors."""
    target = plan.platform.lint_target()
    if target is None:
        return 0
    from xlaserve.buckets.lint.ladder_lint import lint_ladder

    report = lint_ladder(plan.spec, plan.ladder, (target,), plan.platform.jax_name)[0]
    stores.cache.save_report(target.name, json.dumps(report.as_json(), indent=1).encode())
    for finding in report.findings:
        if finding.severity == "error":
            _say(f"{finding.severity} {finding.rule}: {finding.message} ({', '.join(finding.graphs)})")
    _say(f"lint {target.name}: {lint_line(report.as_json())}")
    return 1 if report.count("error") else 0


def _say(line: str) -> None:
    print(line, flush=True)
