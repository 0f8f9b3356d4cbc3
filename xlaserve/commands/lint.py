"""Check every graph that a Neuron device would get against what its compiler is known to refuse. Needs neither weights nor the device.

PATH is a model (a folder with config.json, a .gguf file or a hub id; without it the demo model), or modules that were lowered before: an
artifact directory, a file or a folder of .mlir and .mlirbc (StableHLO), .hlo and .txt (HLO text), .pb (HLO protos). The exit status is 1
where there is an error.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from xlaserve.commands.engine_flags import size, whole
from xlaserve.platforms.neuron import NEURON, NeuronPlatform
from xlaserve.platforms.neuron_targets import TARGETS

if TYPE_CHECKING:
    from xlaserve.buckets.lint.report import Report
    from xlaserve.platforms.neuron_targets import Target

SUMMARY = "check a model's graphs for Neuron, without a device"
_SIZES = ("dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "num_blocks", "tensor_parallel_size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument("path", nargs="?", metavar="PATH", help="a model, or lowered modules")
    parser.add_argument("--target", choices=tuple(TARGETS), default="trn2", help="the chip (default: trn2)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    group = parser.add_argument_group("sizes", "As `serve` takes them; what is left out fits the model and a core of the target.")
    group.add_argument("--dtype", default="auto", metavar="DTYPE", help="of weights and activations (default: auto, bfloat16)")
    group.add_argument("--max-model-len", type=size, metavar="N", help="longest prompt and output together, in tokens")
    group.add_argument("--max-num-seqs", type=whole, metavar="N", help="most sequences that are generated at the same time")
    group.add_argument("--max-num-batched-tokens", type=size, metavar="N", help="most prompt tokens computed in one step")
    group.add_argument("--block-size", type=whole, metavar="N", help="tokens per KV cache block")
    group.add_argument("--num-blocks", type=size, metavar="N", help="KV cache blocks")
    group.add_argument("--tensor-parallel-size", "-tp", type=whole, metavar="N", help="cores to split the model over (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Prints the report; progress goes to stderr."""
    from xlaserve.buckets.lint.files import lint_files, module_files

    target = TARGETS[args.target]
    files = module_files(Path(args.path).expanduser()) if args.path else []
    report = lint_files(files, target) if files else _lint_model(args, target)
    if args.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        for line in report.lines():
            print(line)
    return 1 if report.count("error") else 0


def _lint_model(args: argparse.Namespace, target: Target) -> Report:
    from xlaserve.buckets.lint.ladder_lint import lint_ladder
    from xlaserve.engine.build import plan_graphs
    from xlaserve.engine.config import EngineConfig
    from xlaserve.models.checkpoint import open_config
    from xlaserve.models.registry import model_config

    name, raw = open_config(args.path)
    platform = _AbsentDevice(**{field.name: getattr(NEURON, field.name) for field in fields(NEURON)}, target=target)
    config = EngineConfig(model=args.path, **{field: getattr(args, field) for field in _SIZES})
    limits, ladder, spec, _ = plan_graphs(config, model_config(raw), platform)
    total = len(ladder.graphs)
    cores = "one core" if limits.tensor_parallel_size == 1 else f"{limits.tensor_parallel_size} cores"
    what = (
        f"{name} for {cores} of {target.name}: up to {limits.max_model_len:,} tokens, {limits.max_num_seqs} sequences, {limits.dtype}, "
        f"{total} graphs"
    )
    print(what, file=sys.stderr, flush=True)

    def on_graph(graph: str, done: int) -> None:
        print(f"graph {done:>3}/{total}  {graph}", file=sys.stderr, flush=True)

    return lint_ladder(spec, ladder, (target,), platform.jax_name, on_graph)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _AbsentDevice(NeuronPlatform):
    """A platform of whose devices only the kind is known.

    Args:
        target: which kind.
    """

    target: Target

    def memory(self) -> int:
        """Bytes of one core."""
        return self.target.memory

    def joined_devices(self) -> tuple[int, ...]:
        """Numbers of cores over which a model can be split."""
        return self.target.parallel
