"""Starts an engine process before anything else is imported: while this process imports the server, that one imports JAX.

It does nothing until `EngineProcess.start` tells it what to be, and ends when this process does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spawned:
    """An engine process that waits to be told what to be.

    Args:
        process: the process.
        end: our end of the socket between the two.
    """

    process: subprocess.Popen[bytes]
    end: socket.socket

    def __enter__(self) -> Spawned:
        return self

    def __exit__(self, *_error: object) -> None:
        """No process is left, whether it has been told anything or not."""
        self.end.close()
        self.process.kill()
        self.process.wait()


def spawn_engine() -> Spawned:
    """Start a fresh interpreter, not a copy of this one, that holds the other end of the socket."""
    ours, theirs = socket.socketpair()
    with theirs:
        # It finds its modules where this process does, whatever the current directory.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        command = [sys.executable, "-P", "-m", "xlaserve.engine.engine_main", str(theirs.fileno()), str(os.getpid())]
        with _signals_held_back():
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env=environment)
    return Spawned(process, ours)


@contextlib.contextmanager
def _signals_held_back() -> Generator[None]:
    """What starts here begins with signals blocked: until it can ignore them, Ctrl-C in the terminal must not end it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
