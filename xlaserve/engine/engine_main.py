"""The engine process: `python -m xlaserve.engine.engine_main SOCKET PARENT`, started by `engine_process` and by nothing else.

It obeys its parent only: signals from the terminal or a service manager are the parent's to act on, and when the parent goes, it goes.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time

from xlaserve.engine.framing import FrameReader, FrameWriter
from xlaserve.engine.inbox import Inbox
from xlaserve.engine.log_format import log_to_stderr
from xlaserve.engine.messages import Failed, Progress, Ready, Reply, Start, Step, ToEngine, TokenEvent
from xlaserve.errors import XlaserveError

log = logging.getLogger("xlaserve.engine")

NAME = "xlaserve-engine"
"""What `ps` and `top` show; Linux keeps 15 bytes."""

STATS_SECONDS = 0.05
"""Statistics cross no more often than this while the engine is busy."""

_CHUNK = 1 << 16
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


class Channel:
    """The engine's end of the socket.

    Args:
        end: connected to the parent.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._writer = FrameWriter()
        self._reader = FrameReader[ToEngine](ToEngine)

    def send(self, message: Progress | Ready | Step | Failed | Reply) -> None:
        """Send one message; waits where the parent does not keep up."""
        try:
            self._end.sendall(self._writer.frame(message))
        except OSError:
            _vanish()

    def receive(self) -> list[ToEngine]:
        """The messages that come next. Does not return where the parent has gone."""
        messages: list[ToEngine] = []
        while not messages:
            try:
                data = self._end.recv(_CHUNK)
            except OSError:
                data = b""
            if not data:
                _vanish()
            messages = self._reader.feed(data)
        return messages


def main(descriptor: int, parent: int) -> int:
    """Be an engine.

    Args:
        descriptor: of the socket.
        parent: its process id.

    Returns:
        The exit status: 1 where the engine has failed. It never ends without failing: it is ended.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    _tie_to(parent)
    os.set_inheritable(descriptor, False)
    channel = Channel(socket.socket(fileno=descriptor))
    # Here, and not at the top: these imports take a second or more, and the end of the parent is noticed meanwhile.
    threading.Thread(target=_import_engine, name="import", daemon=True).start()
    start, *early = channel.receive()
    assert isinstance(start, Start)
    assert not early
    if start.python_path is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = start.python_path
    log_to_stderr(start.log_level, start.log_format)
    try:
        _run(channel, start)
    except XlaserveError as error:
        channel.send(Failed.of(error))
    except Exception as error:
        log.exception("The engine has stopped after an error")
        channel.send(Failed.of(error))
    return 1


def _run(channel: Channel, start: Start) -> None:
    inbox = Inbox()
    threading.Thread(target=_receive, args=(channel, inbox), name="receive", daemon=True).start()

    from xlaserve.engine.build import build  # is being imported: waits until it is there
    from xlaserve.engine.loop import EngineLoop

    engine = build(start.config, lambda line: channel.send(Progress(line)))
    core = engine.core
    loop = EngineLoop(core, inbox)
    told = 0.0

    def tell(events: list[TokenEvent], replies: list[Reply]) -> None:
        nonlocal told
        now = time.monotonic()
        # Whoever reads the statistics after an answer finds what the call has changed.
        due = now - told >= STATS_SECONDS or not core.has_work or bool(replies)
        if events or due:
            told = now if due else told
            channel.send(
                Step(
                    events,
                    core.num_waiting,
                    core.num_waiting_tokens,
                    loop.num_accepted,
                    loop.num_accepted_tokens,
                    core.stats() if due else None,
                )
            )
        for reply in replies:
            channel.send(reply)

    channel.send(Ready(engine.plan.info()))
    tell([], [])
    # The vocabulary of grammars: reading it stops all threads for a while, so that it is better done before there is much to do.
    threading.Thread(target=core.prepare_grammars, name="grammars", daemon=True).start()
    loop.run(tell)


def _import_engine() -> None:
    """What an engine is made of. Whatever fails here fails again in `_run`, which tells the parent."""
    with contextlib.suppress(Exception):
        importlib.import_module("xlaserve.engine.build")


def _receive(channel: Channel, inbox: Inbox) -> None:
    try:
        while True:
            for message in channel.receive():
                assert not isinstance(message, Start)
                inbox.put(message)
    except BaseException:  # an engine that hears nothing must not seem to live
        log.exception("The engine cannot read what it is told")
        os._exit(1)


def _tie_to(parent: int) -> None:
    """Take the engine's name, and end when the parent does, even where Python itself cannot run any more."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_NAME, NAME.encode(), 0, 0, 0)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        _vanish()


def _vanish() -> None:
    """End at once, whatever other threads do: nobody is left who could want anything."""
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
