"""Compile every graph that `serve` with the same flags would need, and keep them in the compile cache. Loads no weights."""

from __future__ import annotations

import argparse

from xlaserve.commands.engine_flags import add_engine_arguments, engine_options

SUMMARY = "compile a model's graphs ahead of serving it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags, the engine's."""
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the plan, each graph as it is ready, and where the graphs are kept."""
    from xlaserve.engine.build import compile_graphs, make_plan
    from xlaserve.engine.config import EngineConfig

    config = EngineConfig(model=args.model, **engine_options(args))
    plan = make_plan(config)
    print(plan.describe(), flush=True)
    graphs = compile_graphs(plan, config, lambda line: print(line, flush=True))
    compiled = sum(graph.source == "compiled" for graph in graphs.values())
    print(f"{len(graphs)} graphs are ready, {compiled} of them compiled now", flush=True)
    return 0
