"""Everything that is to be measured on an NVIDIA card, in parts that can be run again.

    python -m benchmarks.gpu OUT [--seconds 540] [--parts NAME ...] [--rehearse]
    python -m benchmarks.gpu OUT --report                       # writes the GPU part of benchmarks/RESULTS.md

OUT/gpu.json holds what each part has found, and is written after each of them; parts that are in it already are not run again. OUT/gpu.log
holds what they said. No part is begun for which less time is left than it may take. `--rehearse` runs the same code on the CPU, small.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.scale import CARD, REHEARSAL

LEAST = 40
"""Seconds that must be left for a part to begin."""


def main() -> int:
    """Run parts, one after the other, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory of the results")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=540, help="for all (default: 540)")
    parser.add_argument("--rehearse", action="store_true", help="small, on the CPU")
    parser.add_argument("--report", action="store_true", help="run nothing; write RESULTS.md")
    parser.add_argument("--one", choices=list(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        found = PARTS[args.one][0](REHEARSAL if args.rehearse else CARD)
        (args.out / f"{args.one}.part").write_text(json.dumps(found, default=str))
        return 0
    if args.report:
        from benchmarks.gpu.report import write

        return write(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    return _all(args)


def _all(args: argparse.Namespace) -> int:
    file, ended = args.out / "gpu.json", time.monotonic() + args.seconds
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name in args.parts:
        if "error" not in results.get(name, {"error": ""}):
            continue
        left = ended - time.monotonic()
        if left < LEAST:
            print(f"{name}: no time is left", flush=True)
            continue
        results[name] = _run(name, args, min(PARTS[name][1], left))
        file.write_text(json.dumps(results, indent=1))
        print(f"{name}: {results[name].get('error', 'done')[:300]} ({results[name]['part_seconds']:.0f} s)", flush=True)
    return 1 if any("error" in results.get(name, {}) for name in args.parts) else 0


def _run(name: str, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """One part, which ends with its time."""
    began, part = time.monotonic(), args.out / f"{name}.part"
    command = [sys.executable, "-m", "benchmarks.gpu", str(args.out), "--one", name, *(["--rehearse"] if args.rehearse else [])]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if args.rehearse:
        environment["JAX_PLATFORMS"] = "cpu"
    with (args.out / "gpu.log").open("a") as log:
        log.write(f"\n=== {name}\n")
        log.flush()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
    took = time.monotonic() - began
    if code == 0 and part.exists():
        found = json.loads(part.read_text())
        part.unlink()
        return {**found, "part_seconds": took}
    what = f"it took longer than {seconds:.0f} s" if code is None else f"it ended with {code}"
    last = (args.out / "gpu.log").read_text(errors="replace").strip().splitlines()[-1:]
    return {"error": f"{what}: {' '.join(last)}", "part_seconds": took}


if __name__ == "__main__":
    sys.exit(main())
