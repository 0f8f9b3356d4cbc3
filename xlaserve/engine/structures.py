"""The structured sequences of an engine: forms are compiled, and masks filled, on threads while the device runs. No JAX.

The engine's thread hands over what it knows and collects what came of it; it never waits for a form that takes its time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from xlaserve.engine.grammar import Grammars
from xlaserve.engine.sequence import Sequence, Status
from xlaserve.engine.structure import Structure

log = logging.getLogger(__name__)

PATIENCE = 0.002
"""Seconds that an iteration waits for masks which are being filled. What takes longer misses iterations, and is not waited for again."""

_THREADS = max(1, min(4, os.cpu_count() or 1))
_COMPILING = 4
_STACK = 64 << 20
"""Bytes of stack for compiling: several times of what `grammar_check` allows, so that what passed there cannot overflow it."""

_Work = Callable[[], None]


@dataclass(slots=True)
class StructureCounters:
    """What `EngineStats` counts, in place.

    Args:
        compiled: forms that were compiled or found compiled.
        compile_seconds: what that took.
        masks: masks that were filled.
        mask_seconds: what that took, tokens consumed included.
        forced: tokens that were not sampled, because nothing else could come.
    """

    compiled: int = 0
    compile_seconds: float = 0.0
    masks: int = 0
    mask_seconds: float = 0.0
    forced: int = 0


class _Pool:
    """Threads that take work until the pool is collected."""

    def __init__(self, name: str, threads: int, stack: int = 0) -> None:
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        before = threading.stack_size(stack)
        try:
            for number in range(threads):
                threading.Thread(target=_work, args=(self._work,), name=f"{name}-{number}", daemon=True).start()
        finally:
            threading.stack_size(before)
        weakref.finalize(self, _end, self._work, threads)

    def put(self, work: _Work) -> None:
        self._work.put(work)


class Structures:
    """Follows the forms of sequences. All methods are called by the engine's thread.

    Args:
        grammars: compiles forms.
    """

    def __init__(self, grammars: Grammars) -> None:
        self.grammars = grammars
        self.counters = StructureCounters()
        self._compiling: _Pool | None = None
        self._filling: _Pool | None = None
        self._done: SimpleQueue[Sequence] = SimpleQueue()
        self._busy: set[Sequence] = set()
        self._late: set[Sequence] = set()

    @property
    def used(self) -> bool:
        """Whether there has been any form at all."""
        return self._compiling is not None

    @property
    def busy(self) -> bool:
        """Whether any form is being worked on."""
        return bool(self._busy)

    def add(self, sequence: Sequence) -> None:
        """Compile the form of a new sequence, which is not ready until then."""
        params = sequence.params
        assert params.structured is not None
        grammars = self.grammars
        structure = sequence.structure = Structure(params.structured, grammars.eos_ids if params.ignore_eos else ())
        self._compiling = self._compiling or _Pool("grammar", _COMPILING, _STACK)
        self._start(sequence, self._compiling, lambda: structure.begin(grammars))
        self._late.add(sequence)  # nobody waits for it

    def consume(self, sequence: Sequence, token: int) -> None:
        """Go on by a token that was read; the sequence is not ready until its next mask is filled."""
        structure = sequence.structure
        assert structure is not None
        self._filling = self._filling or _Pool("mask", _THREADS, _STACK)
        self._start(sequence, self._filling, lambda: structure.consume(token))

    def collect(self, *, seconds: float = PATIENCE) -> list[Sequence]:
        """Sequences that have become ready; waits for those that have been under way for no longer than `seconds`."""
        until = time.monotonic() + seconds
        ready: list[Sequence] = []
        while self._busy:
            wait = until - time.monotonic()
            if (wait <= 0 or self._busy <= self._late) and self._done.empty():
                break
            try:
                sequence = self._done.get(timeout=max(0.0, wait))
            except Empty:
                break
            self._ready(sequence, ready)
        self._late |= self._busy
        return ready

    def wait(self, seconds: float) -> None:
        """Return when something is ready to be collected, or after some seconds."""
        if self._busy and self._done.empty():
            with suppress(Empty):
                self._done.put(self._done.get(timeout=seconds))

    def _ready(self, sequence: Sequence, ready: list[Sequence]) -> None:
        self._busy.discard(sequence)
        self._late.discard(sequence)
        structure = sequence.structure
        assert structure is not None
        structure.ready = True
        counters = self.counters
        counters.compiled += structure.compile_seconds > 0
        counters.compile_seconds += structure.compile_seconds
        counters.masks += structure.masks
        counters.mask_seconds += structure.mask_seconds
        structure.compile_seconds = structure.mask_seconds = 0.0
        structure.masks = 0
        if sequence.status is not Status.FINISHED:
            ready.append(sequence)

    def _start(self, sequence: Sequence, pool: _Pool, work: _Work) -> None:
        structure, done = sequence.structure, self._done
        assert structure is not None
        structure.ready = False
        self._busy.add(sequence)

        def run() -> None:
            try:
                work()
            except Exception as error:
                structure.error = str(error)
            done.put(sequence)

        pool.put(run)


def _work(queue: SimpleQueue[_Work | None]) -> None:
    while (work := queue.get()) is not None:
        work()
        del work  # while it waits, it keeps nothing


def _end(queue: SimpleQueue[_Work | None], threads: int) -> None:
    for _ in range(threads):
        queue.put(None)
