"""Tries what users write for grammars in processes of their own, before an engine sees it. No JAX.

A grammar can take forever to compile, and nothing stops a thread; it can take more stack or memory than there is, which ends a process. So
each is compiled first where that does no harm: within a time, and where the process ends or has to be ended, the grammar is refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, LifoQueue

import msgspec

from xlaserve.engine.framing import FrameReader, FrameWriter
from xlaserve.errors import CallFailedError
from xlaserve.models.config import LoadFormat
from xlaserve.sampling.structured import StructuredOutput

log = logging.getLogger(__name__)

PROCESSES = 4
"""Grammars that are tried at once at most."""

_SPARE = 2
"""Processes to have once there are any, so that nobody has to wait for one to start because another hangs."""

_PATIENCE = 0.1
"""Seconds to wait for a process that is busy before another is started: most grammars take milliseconds, and starting takes longer."""

START_SECONDS = 120.0
_KNOWN = 256
"""Grammars whose verdict is remembered."""
_CHUNK = 1 << 16


class Vocabulary(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """To a new process: what grammars are compiled for.

    Args:
        checkpoint: its directory or file, to read the tokenizer from.
        vocab_size: token ids that the model has logits for.
        eos_ids: its end-of-sequence ids.
        seconds: what a grammar may take; the process ends itself where it takes much longer.
        load_format: as the engine's.
    """

    checkpoint: str
    vocab_size: int
    eos_ids: tuple[int, ...]
    seconds: float
    load_format: LoadFormat = "auto"


class Try(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """To the process: try this form."""

    structured: StructuredOutput


class Verdict(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """From the process: why the form is refused, None where it is not; and once, with None, when it is ready."""

    refused: str | None


class GrammarCheck:
    """Says whether forms can be used. Belongs to one event loop; nothing is started before the first form.

    Args:
        vocabulary: of the model.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._processes: set[_Process] = set()
        self._idle: LifoQueue[_Process | None] = LifoQueue()
        self._starting = False
        self._verdicts: OrderedDict[StructuredOutput, str | None] = OrderedDict()
        self._open: dict[StructuredOutput, asyncio.Future[str | None]] = {}
        self._closed = False

    async def check(self, structured: StructuredOutput) -> None:
        """Return where the form can be used.

        Raises:
            InvalidRequestError: it makes no sense, takes too long, or takes too much memory.
        """
        if structured in self._verdicts:
            self._verdicts.move_to_end(structured)
        else:
            # Requests with one form wait for one answer.
            if self._closed:
                raise CallFailedError("The engine has been closed.")
            if (answer := self._open.get(structured)) is None:
                if self._threads is None:
                    self._threads = ThreadPoolExecutor(PROCESSES, "grammar-check")
                answer = asyncio.get_running_loop().run_in_executor(self._threads, self._try, structured)
                self._open[structured] = answer
                answer.add_done_callback(lambda done: self._forget(structured, done))
            try:
                verdict = await asyncio.shield(answer)
            except asyncio.CancelledError:
                if not answer.cancelled():
                    raise  # the caller was
                raise CallFailedError("The engine has been closed.") from None
            self._verdicts[structured] = verdict
            if len(self._verdicts) > _KNOWN:
                self._verdicts.popitem(last=False)
        if (refused := self._verdicts[structured]) is not None:
            raise structured.invalid(refused)

    def close(self) -> None:
        """End the processes. What is being tried is not answered any more."""
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.end()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        for process in list(self._processes):
            process.reap()

    def _forget(self, structured: StructuredOutput, answer: asyncio.Future[str | None]) -> None:
        self._open.pop(structured, None)
        if not answer.cancelled():
            answer.exception()  # nobody may be left who wants to know

    def _try(self, structured: StructuredOutput) -> str | None:
        """In a thread: the verdict of a process."""
        process = self._take()
        answered, refused = process.ask(structured, self._vocabulary.seconds)
        if answered:
            self._idle.put(process)
        else:
            self._lose(process)
        if len(self._processes) < _SPARE:
            self._add()
        if answered:
            return refused
        if self._closed:
            raise CallFailedError("The engine has been closed.")
        log.warning("A %s was refused: compiling it %s", structured.kind, refused)
        return f"the {structured.kind} cannot be used: compiling it {refused}. Make it simpler."

    def _take(self) -> _Process:
        """A process that is ready: whichever is first, one that becomes idle or a new one."""
        while not self._closed:
            if not self._processes:
                self._add()
            try:
                process = self._idle.get(timeout=_PATIENCE)
            except Empty:
                self._add()
                continue
            if process is None:
                raise CallFailedError("Structured output cannot be checked: the process for it does not start.")
            return process
        raise CallFailedError("The engine has been closed.")

    def _add(self) -> None:
        """Start a process, if there may be one more, which waits for work when it is ready. Where it does not start, None does."""
        with self._lock:
            if self._closed or self._starting or len(self._processes) == PROCESSES:
                return
            self._starting = True
            process = _Process(self._vocabulary)
            self._processes.add(process)

        def begin() -> None:
            ready = process.begin()
            self._starting = False
            if not ready:
                self._lose(process)
            self._idle.put(process if ready else None)

        threading.Thread(target=begin, name="grammar-check-start", daemon=True).start()

    def _lose(self, process: _Process) -> None:
        with self._lock:
            self._processes.discard(process)


class _Process:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._writer, self._reader = FrameWriter(), FrameReader[Verdict](Verdict)
        self._end, theirs = socket.socketpair()
        with theirs:
            # It finds its modules where this process does, whatever the current directory; and it leaves signals to its parent.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
            command = [sys.executable, "-P", "-m", "xlaserve.engine.grammar_check_main", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env=environment, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def begin(self) -> bool:
        """Have it read its vocabulary; False where it cannot."""
        return self._exchange(self._vocabulary, START_SECONDS)[0]

    def ask(self, structured: StructuredOutput, seconds: float) -> tuple[bool, str | None]:
        """Have a form tried: whether there is an answer, and why it is refused or why there is none. Where there is none, it has ended."""
        return self._exchange(Try(structured), seconds)

    def end(self) -> None:
        """End it, from any thread; whoever waits for it notices."""
        self._process.kill()

    def reap(self) -> None:
        """Leave nothing of it, once it has been ended."""
        self._process.wait()
        self._end.close()

    def _exchange(self, message: Vocabulary | Try, seconds: float) -> tuple[bool, str | None]:
        why = "takes more memory or depth than there is"
        try:
            self._end.settimeout(seconds)
            self._end.sendall(self._writer.frame(message))
            while data := self._end.recv(_CHUNK):
                if verdicts := self._reader.feed(data):
                    return True, verdicts[0].refused
        except TimeoutError:
            why = f"takes more than {seconds:g} s"
        except OSError:
            pass
        self.end()
        self.reap()
        return False, why
