"""A process that holds one engine with one model and answers commands: JSON, one object a line, on stdin and stdout.

    PYTHON -m benchmarks.peers.runner ENGINE JSON

ENGINE is a class as `module:Class`, JSON the fields of a `Setup`. The first line out tells what the engine is, or why there is none
(`{"failed": ...}`). Then each line in (`{"prompts": [[...]], "output_len": n}`) is answered with the fields of a `Run`. It ends with
stdin. What libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from benchmarks.peers.engine import Engine, Setup

_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when its parent dies."""


def setup_from(fields: dict[str, Any]) -> Setup:
    """A `Setup` from what JSON makes of one."""
    return Setup(**{**fields, "model": Path(fields["model"]), "cpus": tuple(fields["cpus"])})


def serve(make: Callable[[Setup], Engine], setup: Setup, commands: TextIO, answers: TextIO) -> int:
    """Load an engine and answer commands until there are no more.

    Returns:
        0, or 1 where the engine failed; the answer to the command, or the first one, then says how.
    """

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        engine = make(setup)
        answer(asdict(engine.about()))
        for line in commands:
            answer(asdict(engine.run(**json.loads(line))))
    except Exception as error:
        traceback.print_exc()
        answer({"failed": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def _make(setup: Setup) -> Engine:
    # Found only now: importing some engines takes seconds, and can fail.
    module, name = sys.argv[1].split(":")
    return getattr(importlib.import_module(module), name)(setup)


def main() -> int:
    """Serve on this process's own stdin and stdout."""
    # A stopped process would not see stdin end, and stay for good where the other side was killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    setup = setup_from(json.loads(sys.argv[2]))
    # Threads inherit this, and engines count processors by it.
    os.sched_setaffinity(0, setup.cpus)
    # Answers keep the real stdout to themselves: libraries, in C too, print to descriptor 1.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers, contextlib.redirect_stdout(sys.stderr):
        os.dup2(2, 1)
        code = serve(_make, setup, sys.stdin, answers)
    # Some engines' threads do not end by themselves.
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
