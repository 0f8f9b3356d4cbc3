"""Seconds from `xlaserve serve` to ready: tracing everything, compiling stored StableHLO, and loading executables of an artifact directory.

    python benchmarks/startup.py [MODEL] [--runs 3] [--ways exact,stablehlo,trace] [any flags of `serve`]

All starts have the same flags, and weights that the system has read before. Ways take turns, so that what else the machine does meets all
of them; medians are told, and CPU seconds of all processes, which say more where others use the machine. The time of compiling the
directory is not counted. Python's bytecode is kept from the first start on, as an installed package has it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = ("exact", "stablehlo", "trace")
XLASERVE = [sys.executable, "-m", "xlaserve"]


def without_executables(made: Path, directory: Path) -> None:
    """A copy of an artifact directory that holds StableHLO alone, as `compile --target` makes it where the device is elsewhere."""
    shutil.copytree(made, directory, ignore=shutil.ignore_patterns("*.xla", "costs-*.json"))
    manifest = json.loads((directory / "manifest.json").read_bytes())
    manifest["machines"] = {}
    for graph in manifest["graphs"].values():
        graph["executables"] = {}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def start(options: list[str], environment: dict[str, str], artifacts: Path | None, log: Path) -> tuple[float, float]:
    """Start a server, wait until it serves, and stop it: seconds until then, and CPU seconds until it has stopped."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as cache, log.open("w") as file:
        command = [*XLASERVE, "serve", *options, "--port", "0", "--compile-cache", cache]
        command += ["--artifacts", str(artifacts)] if artifacts else []
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        assert process.stdout is not None
        seconds = 0.0
        for line in process.stdout:
            file.write(f"{time.perf_counter() - began:7.2f} {line}")
            file.flush()
            if line.startswith("Serving "):
                seconds = time.perf_counter() - began
                process.send_signal(signal.SIGTERM)
        process.wait()
    if not seconds:
        sys.exit(log.read_text())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Print a line for each start, and the table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="as for `serve` (default: the demo model)")
    parser.add_argument("--runs", type=int, default=3, help="starts of each way (default: 3)")
    parser.add_argument("--ways", default=",".join(WAYS), help="which ways (default: all)")
    parser.add_argument("--keep", metavar="DIR", help="where the artifacts are made, and found again, and logs are kept")
    args, flags = parser.parse_known_args()
    ways = args.ways.split(",")
    root = Path(args.keep or tempfile.mkdtemp(prefix="startup-")).absolute()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(root / "bytecode")
    options = [*([args.model] if args.model else []), *flags]
    made, portable = root / "exact", root / "stablehlo"
    if not made.is_dir():
        subprocess.run([*XLASERVE, "compile", *options, "-o", str(made)], env=environment, check=True)
        without_executables(made, portable)
    places = {"exact": made, "stablehlo": portable, "trace": None}
    results: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for run in range(args.runs + 1):
        for way in ways if run else ways[:1]:  # the first start reads weights and writes bytecode, and does not count
            log = root / f"{way}-{run}.log"
            seconds, cpu = start(options, environment, places[way], log)
            print(f"{way:<10} {seconds:7.2f} s to ready, {cpu:7.2f} CPU s, load {os.getloadavg()[0]:.1f}{'' if run else ' (not counted)'}")
            if run:
                results[way].append((seconds, cpu))
    print("\n| way | seconds to ready | CPU seconds |\n|---|---|---|")
    for way, found in results.items():
        wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"| {way} | {wall:.2f} | {cpu:.2f} |")
    print(f"\nlogs are in {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
