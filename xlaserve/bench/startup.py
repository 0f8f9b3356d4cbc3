"""Seconds from `xlaserve serve` to ready, cold and warm: tracing everything, compiling stored StableHLO, and loading executables.

All starts have the same flags, and weights that the system has read before. Ways take turns, so that what else the machine does meets all
of them. CPU seconds of all processes are told too, which say more where others use the machine. Compiling what the warm ways load is not
counted. Python's bytecode is kept from the first start on, as an installed package has it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xlaserve.bench.server_process import XLASERVE, children_cpu_seconds, started_server
from xlaserve.bench.spread import Spread
from xlaserve.bench.table import table
from xlaserve.errors import XlaserveError

WAYS = {
    "exact": "warm: executables from an artifact directory",
    "stablehlo": "cold here, not traced: StableHLO from an artifact directory, compiled",
    "trace": "cold: everything traced and compiled",
}
"""Ways to start, by name."""

_STDERR = 2
"""Progress goes there."""


def bench_startup(
    options: Sequence[str], ways: Sequence[str], iterations: int, root: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any], str]:
    """Start servers and stop them.

    Args:
        options: model and flags of `serve`.
        ways: names of `WAYS`.
        iterations: starts of each way; one more, of the first way, comes before and does not count.
        root: where artifacts are made, and found again, and logs are kept.
        say: told of every start.

    Returns:
        The metrics, and the same for a person.

    Raises:
        XlaserveError: a server does not start, or its graphs do not compile.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(root / "bytecode")
    places: dict[str, Path | None] = {"exact": root / "exact", "stablehlo": root / "stablehlo", "trace": None}
    if set(ways) != {"trace"}:
        _make(options, root / "exact", root / "stablehlo", environment)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(iterations + 1):
        for way in ways if number else ways[:1]:
            taken, used = _start(options, environment, places[way], root / f"{way}-{number}.log")
            load = os.getloadavg()[0]
            say(f"{way:<10} {taken:7.2f} s to ready, {used:7.2f} CPU s, load {load:.1f}{'' if number else ' (not counted)'}")
            if number:
                seconds[way].append(taken)
                cpu[way].append(used)
    metrics = {way: {"ready_s": Spread.of(seconds[way]).as_json(), "cpu_s": Spread.of(cpu[way]).as_json()} for way in ways}
    rows = [(way, WAYS[way], Spread.of(seconds[way]).text(2), Spread.of(cpu[way]).text(2)) for way in ways]
    return metrics, table(("way", "what", "seconds to ready", "CPU seconds"), rows, left=2)


def without_executables(made: Path, directory: Path) -> None:
    """A copy of an artifact directory that holds StableHLO alone, as `compile --target` makes it where the device is elsewhere."""
    shutil.copytree(made, directory, ignore=shutil.ignore_patterns("*.xla", "costs-*.json"))
    manifest = json.loads((directory / "manifest.json").read_bytes())
    manifest["machines"] = {}
    for graph in manifest["graphs"].values():
        graph["executables"] = {}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def _make(options: Sequence[str], made: Path, portable: Path, environment: Mapping[str, str]) -> None:
    if not made.is_dir():
        done = subprocess.run([*XLASERVE, "compile", *options, "-o", str(made)], env=environment, stdout=_STDERR, check=False)
        if done.returncode:
            raise XlaserveError(f"`xlaserve compile` with these flags ended with exit code {done.returncode}.")
    if not portable.is_dir():
        without_executables(made, portable)


def _start(options: Sequence[str], environment: Mapping[str, str], artifacts: Path | None, log: Path) -> tuple[float, float]:
    """Start a server, wait until it serves, and stop it: seconds until then, and CPU seconds until it has stopped."""
    before = children_cpu_seconds()
    with tempfile.TemporaryDirectory() as cache:
        more = ["--compile-cache", cache, *(["--artifacts", str(artifacts)] if artifacts else [])]
        with started_server([*options, *more], log, environment) as server:
            seconds = server.seconds
    return seconds, children_cpu_seconds() - before
