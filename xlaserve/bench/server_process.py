"""`xlaserve serve` as a process of its own, started for a measurement and ended with it. What it prints is kept in a file."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from xlaserve.errors import XlaserveError

XLASERVE = (sys.executable, "-m", "xlaserve")
_SERVING = re.compile(r"Serving .* at (http\S+)\s*$")
_LINES_SHOWN = 5
_PATIENCE = 30.0
"""Seconds that a server may take to end before it is killed."""


@dataclass(frozen=True, slots=True)
class StartedServer:
    """A server that is ready.

    Args:
        url: its address.
        seconds: from starting the process until it served.
        command: what was run.
        process_id: of the process.
    """

    url: str
    seconds: float
    command: tuple[str, ...]
    process_id: int


@contextmanager
def started_server(options: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Generator[StartedServer]:
    """A server on a free port of this machine, until the block ends.

    Args:
        options: arguments of `serve`; the port is chosen here.
        log: where everything that it prints goes; what it says until it serves has the seconds since the start before it.
        environment: of the process; None for this process's.

    Raises:
        XlaserveError: it ended before it served; the message has the end of what it printed.
    """
    command = (*XLASERVE, "serve", *options, "--host", "127.0.0.1", "--port", "0")
    with log.open("a") as file:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment)
        try:
            url = _read_until_ready(process, log, began)
            yield StartedServer(url, time.perf_counter() - began, command, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def _read_until_ready(process: subprocess.Popen[str], log: Path, began: float) -> str:
    """The address that the server tells when it serves. What it prints after that is a few lines, which the pipe holds."""
    assert process.stdout is not None
    with log.open("a") as file:
        for line in process.stdout:
            file.write(f"{time.perf_counter() - began:7.2f} {line}")
            file.flush()
            if found := _SERVING.match(line):
                return found[1]
    code = process.wait()
    said = " | ".join(log.read_text(errors="replace").splitlines()[-_LINES_SHOWN:])
    raise XlaserveError(f"the server ended with exit code {code} before it served; it said: {said}")


def children_cpu_seconds() -> float:
    """CPU seconds of all processes that this one has started and that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
