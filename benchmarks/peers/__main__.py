"""xlaserve beside the peers that a user can install on a CPU, measured by turns in one run.

    python3.11 -m benchmarks.peers.install        # virtual environments of the peers
    python -m benchmarks.peers.models             # the demo model in the forms that they read
    python -m benchmarks.peers --write            # measure; write benchmarks/RESULTS.md and benchmarks/results/peers.json

It takes about 20 minutes on two cores, and they should have nothing else to do. `--quick` generates an eighth of the tokens once, to see
that everything works: its figures say nothing, and are not written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peers.comparison import compare
from benchmarks.peers.contestants import CONTESTANTS, GROUPS, Contestant
from benchmarks.peers.engine_process import EngineFailed, EngineProcess
from benchmarks.peers.machine import busy_seconds, describe
from benchmarks.peers.places import DIRECTORY
from benchmarks.peers.report import report
from benchmarks.peers.workload import MEASURES
from benchmarks.results import RAW, RESULTS, replace_section, write_raw

_ROOT = Path(__file__).parents[2]
_NAME = "peers"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or read what was measured; print the report, and write it if asked."""
    args = _parser().parse_args(arguments)
    _refuse_quick(args.write and args.quick)
    results = json.loads(args.report.read_text()) if args.report else _measure(args)
    text = report(results)
    print(text)
    if args.write:
        _refuse_quick(results["quick"])
        if not args.report:
            write_raw(_NAME, results)
        replace_section(RESULTS, _NAME, text)
    elif not args.report:
        kept = Path(tempfile.mkdtemp(prefix="peers-")) / f"{_NAME}.json"
        kept.write_text(json.dumps(results))
        print(f"raw results: {kept}", file=sys.stderr)
    return 1 if any(record["failed"] for record in results["records"].values()) else 0


def _refuse_quick(refused: bool) -> None:
    if refused:
        sys.exit("a --quick run measures too little to be written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.prog = "python -m benchmarks.peers"
    kinds = list(dict.fromkeys(contestant.kind.name for contestant in CONTESTANTS))
    names = [measure.name for measure in MEASURES]
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help=f"that holds peers and models (default: {DIRECTORY})")
    parser.add_argument("--threads", type=int, default=2, help="of every engine, each with a processor of its own (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="turns at every measure, four times as many at TTFT (default: 3)")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="bits per weight (default: all)")
    parser.add_argument("--engines", nargs="+", choices=kinds, default=kinds, help="(default: all)")
    parser.add_argument("--measures", nargs="+", choices=names, default=names, help="(default: all)")
    parser.add_argument("--quick", action="store_true", help="see that it works")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} and {RAW.name}/{_NAME}.json beside it")
    parser.add_argument("--report", type=Path, metavar="JSON", help="measure nothing, and report raw results")
    return parser


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    available = sorted(os.sched_getaffinity(0))
    if len(available) < args.threads:
        sys.exit(f"--threads {args.threads}: there are only {len(available)} processors")
    cpus = tuple(available[: args.threads])
    measures = [measure for measure in MEASURES if measure.name in args.measures]
    if args.quick:
        measures = [replace(measure, output_len=-(-measure.output_len // 8)) for measure in measures]
    logs = Path(tempfile.mkdtemp(prefix="peers-logs-"))
    print(f"what engines print is in {logs}", file=sys.stderr)

    def start(contestant: Contestant) -> EngineProcess:
        return _start(contestant, args.directory, cpus, logs / f"{contestant.name.replace(' ', '-')}.log")

    results: dict[str, Any] = {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "machine": describe(),
        "cpus": cpus,
        "quick": args.quick,
        "commands": _commands(sys.argv[1:]),
        "records": {},
    }
    for group in args.groups:  # engines of one group fit in memory together
        of_group = [c for c in CONTESTANTS if c.group == group and c.kind.name in args.engines]
        found = compare(of_group, measures, 1 if args.quick else args.repeats, start, busy_seconds)
        results["records"] |= {name: record.json() for name, record in found.items()}
        (logs / f"{_NAME}.json").write_text(json.dumps(results))  # should a later group come to grief
    return results


def _start(contestant: Contestant, directory: Path, cpus: tuple[int, ...], log: Path) -> EngineProcess:
    setup = contestant.setup(directory, cpus)
    python = contestant.python(directory)
    if not python.exists():
        raise EngineFailed("it is not installed: run python -m benchmarks.peers.install")
    if not Path(setup["model"]).exists():
        raise EngineFailed("its form of the model is missing: run python -m benchmarks.peers.models")
    command = [str(python), "-m", "benchmarks.peers.runner", contestant.kind.engine, json.dumps(setup)]
    return EngineProcess(command, contestant.process_environment(directory, cpus), _ROOT, log)


def _commit() -> str:
    """The commit that is measured, and whether there is more than it."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=_ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _commands(flags: Sequence[str]) -> list[str]:
    """What somebody else would type. Where things lie on this machine is nobody's business."""
    named = list(flags)
    if "--directory" in named:
        at = named.index("--directory")
        del named[at : at + 2]
    return ["python3.11 -m benchmarks.peers.install", "python -m benchmarks.peers.models", " ".join(["python -m benchmarks.peers", *named])]


if __name__ == "__main__":
    sys.exit(main())
