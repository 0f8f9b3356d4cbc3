"""The other side of `runner`: an engine in a process group of its own.

It is stopped unless it is asked something, so that threads that spin take nothing from others.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.engine import Run
from benchmarks.peers.machine import process_seconds

LOAD_TIMEOUT = 900.0
RUN_TIMEOUT = 600.0


class EngineFailed(Exception):
    """An engine could not be loaded, or failed, died or fell silent at a run; the message says how."""


class EngineProcess:
    """One engine.

    Args:
        command: a `runner`.
        variables: environment of the process, instead of this one's.
        directory: that it runs in.
        log: file for what it prints.

    Raises:
        EngineFailed: it could not be loaded.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], directory: Path, log: Path) -> None:
        with log.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=dict(variables),
                cwd=directory,
                text=True,
                start_new_session=True,
            )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.about = self._answer(LOAD_TIMEOUT)
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def run(self, prompts: list[list[int]], output_len: int) -> Run:
        """Have it generate, as `Engine.run`, and wait for it.

        Raises:
            EngineFailed: it did not.
        """
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"prompts": prompts, "output_len": output_len}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EngineFailed("it has died") from error
        answer = self._answer(RUN_TIMEOUT)
        self._signal(signal.SIGSTOP)
        return Run(**answer)

    def cpu_seconds(self) -> float:
        """CPU seconds that the engine has spent so far."""
        return process_seconds(self._process.pid)

    def close(self) -> None:
        """End the process and all that it started."""
        self._signal(signal.SIGKILL)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is not None:
            return  # and the number may be another's by now
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout:
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _answer(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise EngineFailed(f"it gave no answer for {timeout:.0f} s") from None
        if line is None:
            raise EngineFailed("it has died")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise EngineFailed(answer["failed"])
        return answer
