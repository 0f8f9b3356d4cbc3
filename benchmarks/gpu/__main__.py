"""Everything that is to be measured on an NVIDIA card, in parts that can be run again.

    python -m benchmarks.gpu OUT [--seconds 540] [--parts NAME ...] [--rehearse]
    python -m benchmarks.gpu OUT --report                       # writes the GPU part of benchmarks/RESULTS.md

OUT/gpu.json holds what each part has found, and is written after each of them; parts that have succeeded are not run again, and all are of
one card. OUT/gpu.log holds what they said. No part is begun for which less time is left than it may take, unless all there was is less.
`--rehearse` runs the same code on the CPU, small, and writes OUT/rehearsal.json, which is never reported.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import PARTS, card
from benchmarks.gpu.scale import CARD, REHEARSAL


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
    file, here = args.out / ("rehearsal.json" if args.rehearse else "gpu.json"), card()
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if any(result.get("card", here) != here for result in results.values()):
        sys.exit(f"{file} is of another card than {here or 'none'}, which is here: use another OUT")
    ended = time.monotonic() + args.seconds
    for name in args.parts:
        if "error" not in results.get(name, {"error": ""}):
            continue
        left = ended - time.monotonic()
        if left < min(PARTS[name][1], args.seconds - 1):  # the first may begin in any case, and is ended with the time
            print(f"{name}: {left:.0f} s are left, and it may take {PARTS[name][1]}", flush=True)
            continue
        results[name] = _run(name, args, min(PARTS[name][1], left))
        new = file.with_suffix(".new")  # whoever is ended while writing leaves the old one whole
        new.write_text(json.dumps(results, indent=1))
        new.replace(file)
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
        except BaseException:  # it is in a session of its own, so that Ctrl-C does not reach it, and it would keep the card
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    took = time.monotonic() - began
    if code == 0 and part.exists():
        found = json.loads(part.read_text())
        part.unlink()
        return {**found, "card": card(), "part_seconds": took}
    what = f"it took longer than {seconds:.0f} s" if code is None else f"it ended with {code}"
    last = (args.out / "gpu.log").read_text(errors="replace").strip().splitlines()[-1:]
    return {"error": f"{what}: {' '.join(last)}", "part_seconds": took}


if __name__ == "__main__":
    sys.exit(main())
