"""Compile every graph that `serve` with the same flags would need, measure them, and keep all in the compile cache. Loads no weights."""

from __future__ import annotations

import argparse

from xlaserve.commands.engine_flags import add_engine_arguments, engine_options

SUMMARY = "compile a model's graphs ahead of serving it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags, the engine's."""
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the plan, each graph as it is ready, where the graphs are kept, and what running them costs."""
    from xlaserve.engine.build import compile_graphs, make_plan, measure_costs
    from xlaserve.engine.config import EngineConfig

    config = EngineConfig(model=args.model, **engine_options(args))
    plan = make_plan(config)
    _say(plan.describe())
    graphs = compile_graphs(plan, config, _say)
    measure_costs(plan, config, graphs, _say)
    compiled = sum(graph.source == "compiled" for graph in graphs.values())
    _say(f"{len(graphs)} graphs are ready, {compiled} of them compiled now")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
