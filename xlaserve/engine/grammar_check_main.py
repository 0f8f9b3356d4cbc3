"""The process in which grammars are tried: `python -m xlaserve.engine.grammar_check_main SOCKET`, started by `grammar_check`.

It may hang or crash; then it is ended, or ends. It has less stack and memory than an engine, so that what passes here passes there.
"""

from __future__ import annotations

import resource
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from xlaserve.engine.framing import FrameReader, FrameWriter
from xlaserve.engine.grammar import Grammars
from xlaserve.engine.grammar_check import Try, Verdict, Vocabulary
from xlaserve.errors import InvalidRequestError
from xlaserve.models.checkpoint import open_checkpoint

STACK = 8 << 20
"""Bytes of stack for compiling."""

MEMORY = 2 << 30
"""Bytes of address space for compiling, besides what the process has when it begins."""

_CHUNK = 1 << 16


def serve(end: socket.socket) -> None:
    """Answer until the other side closes."""
    reader, writer = FrameReader[Vocabulary | Try](Vocabulary | Try), FrameWriter()
    grammars: Grammars | None = None
    seconds = 0.0
    while data := end.recv(_CHUNK):
        for message in reader.feed(data):
            refused: str | None = None
            if isinstance(message, Vocabulary):
                grammars, seconds = _grammars(message), message.seconds
            else:
                assert grammars is not None
                # Where the parent has gone, nobody else ends it.
                signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 1)
                try:
                    grammars.check(message.structured)
                except InvalidRequestError as error:
                    refused = str(error).removeprefix(f"{message.structured.field}: ")
                signal.setitimer(signal.ITIMER_REAL, 0)
            end.sendall(writer.frame(Verdict(refused)))


def _grammars(vocabulary: Vocabulary) -> Grammars:
    path, load_format = vocabulary.checkpoint, vocabulary.load_format
    grammars = Grammars(lambda: open_checkpoint(path, load_format).tokenizer(), vocabulary.vocab_size, vocabulary.eos_ids)
    grammars.prepare()
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    return grammars


def main(descriptor: int) -> int:
    """Be that process.

    Args:
        descriptor: of the socket.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK)
    failed: list[Any] = []

    def run() -> None:
        try:
            serve(socket.socket(fileno=descriptor))
        except OSError:
            pass  # the other side has gone
        except BaseException:
            failed.append(True)
            raise

    # A thread of its own, since the stack of the first one is as large as the shell has set.
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
