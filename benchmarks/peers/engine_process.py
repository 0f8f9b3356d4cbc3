"""The other side of `runner`: an engine in a process group of its own, which stands still unless it is asked something."""

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
        stop_between: whether the process is stopped while it is not asked anything, so that threads that spin take nothing from others.

    Raises:
        EngineFailed: it could not be loaded.
    """

    def __init__(
        self, command: Sequence[str], variables: Mapping[str, str], directory: Path, log: Path, *, stop_between: bool = True
    ) -> None:
        self._log = log
        self._stop_between = stop_between
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
        self._stopped = False
        try:
            self.about = self._answer(LOAD_TIMEOUT)
        except BaseException:
            self.close()
            raise
        self._stand_still()

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
            raise EngineFailed(f"it has died; see {self._log}") from error
        answer = self._answer(RUN_TIMEOUT)
        self._stand_still()
        return Run(**answer)

    def close(self) -> None:
        """End the process and all that it started."""
        for stream in (self._process.stdin,):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _stand_still(self) -> None:
        if self._stop_between:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
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
            raise EngineFailed(f"it gave no answer for {timeout:.0f} s; see {self._log}") from None
        if line is None:
            raise EngineFailed(f"it has died; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise EngineFailed(answer["failed"])
        return answer
