"""`xlaserve serve` as users run it: a server process and its engine process, on a tiny model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests.conftest import TINY_ENGINE

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 120.0
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in TINY_ENGINE.items()]
COMMAND = [sys.executable, "-W", "error", "-m", "xlaserve.cli"]


class Served:
    """A `serve` process in a process group of its own; `client` is an httpx client on its address."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.url = re.search(r"http://[^\s,]+", self.read_until("listening on"))[0]  # type: ignore[index]
        self.client = httpx.Client(base_url=self.url, timeout=TIMEOUT)

    def read_until(self, text: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if text in line:
                return line
        raise AssertionError(f"ended without {text!r}: {self.lines} {self.process.stderr and self.process.stderr.read()}")

    def read_until_ready(self) -> None:
        self.read_until("    -d ")

    @property
    def engine(self) -> int:
        """Process id of the engine: the server's only child, which starts right after it listens."""
        while not (found := children(self.process.pid)):
            os.sched_yield()
        (child,) = found
        return child

    def ended(self) -> tuple[int, str, str]:
        """Wait for the end: exit status, what else it printed, and its standard error."""
        printed, errors = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, printed, errors


def children(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def assert_gone(pid: int) -> None:
    """A process has ended, or does so now."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state in "ZX":  # ended; whoever adopted it has not asked for its status yet
            return
        os.sched_yield()
    raise AssertionError(f"process {pid} lives on")


@contextmanager
def serving(
    model: object,
    *arguments: str,
    command: Sequence[str] = COMMAND,
    sizes: Sequence[str] = FLAGS,
    environment: Mapping[str, str] | None = None,
) -> Generator[Served]:
    """Serve until the block ends; no process outlives it."""
    with subprocess.Popen(
        [*command, "serve", "--port=0", str(model), *sizes, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that nothing that a test starts can outlive it
    ) as process:
        try:
            served = Served(process)
            with served.client:
                yield served
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
