"""Gets every bucket's executable before the engine is ready, by the load ladder: a stored executable, else stored StableHLO that is
compiled here, else tracing and compiling. What was made is stored.

Graphs are prepared in a pool of threads: XLA works outside Python's lock.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jax

from xlaserve.buckets import executable as pjrt
from xlaserve.buckets.graphs import GraphSpec, entry
from xlaserve.buckets.ladder import Bucket, ContextBucket, Ladder, UpkeepBucket
from xlaserve.buckets.portable import export, lower_portable
from xlaserve.buckets.store import GraphStore, Verdict, executable_digest
from xlaserve.buckets.tuning import TuningFolder
from xlaserve.errors import ArtifactError, CompileError
from xlaserve.platforms.platform import Autotuning, Device, Family

Executable = Callable[..., Any]
"""A compiled step, or a compiled graph that tends what the device keeps; `xlaserve.buckets.graphs` says what they take and give."""
_STACK_BYTES = 64 << 20  # lowering recurses deeper than a thread's default stack

Source = Literal["loaded", "compiled from StableHLO", "compiled"]


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph that is ready to run.

    Args:
        bucket: its shape.
        run: the executable.
        source: where it came from.
        seconds: how long that took.
        memory: bytes by the compiler's analysis. Of a stored executable, what was recorded when it was made:
            the analysis takes as long as a tenth of loading.
        digest: sha256 of the executable's bytes; empty where the platform gives none.
        note: what was wrong with this graph's stored forms, where something was.
    """

    bucket: Bucket | UpkeepBucket
    run: Executable
    source: Source
    seconds: float
    memory: Mapping[str, int]
    digest: str = ""
    note: str | None = None


class Compiler:
    """Prepares the graphs of one engine.

    Args:
        spec: what the graphs have in common.
        jax_name: JAX's name of the platform that they are for.
        devices: where they run.
        cache: where executables are looked for and kept; None keeps none.
        artifacts: where they are looked for first; nothing is written there.
        only: refuse to compile.
        threads: graphs prepared at once; None for one per core.
        compiling: what must hold while a graph of a family is compiled, as `Platform.compiling` gives it.
        options: of the platform's compiler, by name.
        autotuning: how it takes what was measured before; None where it measures nothing.
        here: whether the devices are of this machine, so that it can measure.
    """

    def __init__(
        self,
        spec: GraphSpec,
        jax_name: str,
        devices: Sequence[Device],
        cache: GraphStore | None,
        *,
        artifacts: GraphStore | None = None,
        only: bool = False,
        threads: int | None = None,
        compiling: Callable[[Family], AbstractContextManager[None]] = lambda _family: nullcontext(),
        options: Mapping[str, str | bool] = MappingProxyType({}),
        autotuning: Autotuning | None = None,
        here: bool = True,
    ) -> None:
        self._spec = spec
        self._jax_name = jax_name
        self._devices = devices
        self._cache = cache
        self._only = only
        self._compiling = compiling
        self._options = dict(options)
        self._autotuning = autotuning
        self._here = here
        self._threads = threads or os.cpu_count() or 1
        stores = [store for store in (artifacts, cache) if store is not None]
        self.verdicts: dict[Path, Verdict] = {store.directory: store.verdict() for store in stores}
        """What each directory can give, for a person."""
        self._stores = [(store, verdict) for store in stores if not (verdict := self.verdicts[store.directory]).empty]
        self._tuning: TuningFolder | None = None
        self._tuning_lock = threading.Lock()

    def start(self, ladder: Ladder) -> list[Future[Graph]]:
        """Begin with every bucket, in the background; the futures raise what compiling raises."""
        previous = threading.stack_size(_STACK_BYTES)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="compile")
        try:
            return [pool.submit(self._prepare, bucket) for bucket in ladder.graphs]
        finally:
            threading.stack_size(previous)
            pool.shutdown(wait=False)

    def _prepare(self, bucket: Bucket | UpkeepBucket) -> Graph:
        began = time.monotonic()
        notes: list[str] = []
        for store, verdict in self._stores:
            if verdict.executables is None and (graph := self._load(store, bucket, began, notes)) is not None:
                return graph
        if self._only:
            raise ArtifactError(
                f"Graph {bucket.name} would have to be compiled, and --artifacts-only forbids that: {self._why(bucket, notes)}."
            )
        if self._cache is None:
            return self._make(bucket, began, notes)
        with self._cache.lock(bucket.name):
            # Another process may have made it while this one waited.
            return self._load(self._cache, bucket, began, []) or self._make(bucket, began, notes)

    def _load(self, store: GraphStore, bucket: Bucket | UpkeepBucket, began: float, notes: list[str]) -> Graph | None:
        try:
            content, memory = store.executable(bucket.name), store.memory(bucket.name)
        except ArtifactError as error:
            notes.append(str(error))
            return None
        if content is None:
            if store is not self._cache:
                notes.append(f"{bucket.name}: {store.directory} has no executable of it")
            return None
        graph = entry(self._spec, bucket)
        try:
            run = pjrt.load(bucket.name, content, graph.arguments, graph.results, self._devices)
        except ArtifactError as error:
            notes.append(f"{bucket.name}: stored executable: {error}")
            return None
        return Graph(bucket, run, "loaded", time.monotonic() - began, memory, executable_digest(content), "; ".join(notes) or None)

    def _make(self, bucket: Bucket | UpkeepBucket, began: float, notes: list[str]) -> Graph:
        source: Source = "compiled from StableHLO"
        for store, verdict in self._stores:
            if verdict.stablehlo is not None:
                continue
            try:
                if (content := store.stablehlo(bucket.name)) is not None:
                    compiled = self._compile(content, bucket, notes)
                    break
            except ArtifactError as error:
                notes.append(str(error) if bucket.name in str(error) else f"{bucket.name}: stored StableHLO: {error}")
            except RuntimeError as error:  # the compiler's: tracing again may give it what it takes
                notes.append(f"{bucket.name}: stored StableHLO: does not compile: {pjrt.first_line(error)}")
        else:
            source = "compiled"
            content = export(self._spec, bucket, self._jax_name)
            try:
                compiled = self._compile(content, bucket, notes)
            except RuntimeError as error:
                raise CompileError(f"Graph {bucket.name} does not compile for {self._jax_name}: {error}") from error
        seconds = time.monotonic() - began
        memory = pjrt.memory(compiled)
        digest = "" if self._cache is None else self._keep(self._cache, bucket, content, compiled, seconds, memory, notes)
        return Graph(bucket, compiled, source, seconds, memory, digest, "; ".join(notes) or None)

    def _compile(self, stablehlo: bytes, bucket: Bucket | UpkeepBucket, notes: list[str]) -> jax.stages.Compiled:
        with self._compiling(_family(bucket)):
            lowered = lower_portable(stablehlo, self._spec, bucket, self._devices)
            if self._autotuning is None:
                return lowered.compile(compiler_options=self._options or None)
            return self._compile_tuned(self._autotuning, lowered, notes)

    def _compile_tuned(self, autotuning: Autotuning, lowered: jax.stages.Lowered, notes: list[str]) -> jax.stages.Compiled:
        """With kernels as they were measured, or are measured now; where neither can be, as the platform has it without."""
        folder = self._tuning_folder(notes)
        options: dict[str, str | bool] = {**self._options, autotuning.directory: str(folder.path)}
        if self._here:
            return lowered.compile(compiler_options=options)
        if len(folder):
            try:
                return lowered.compile(compiler_options=options | dict(autotuning.complete))
            except RuntimeError as error:
                why = pjrt.first_line(error).split(". See logs")[0][:120]
                notes.append(f"tuning is not of all its kernels: {autotuning.chosen_by} ({why})")
        return lowered.compile(compiler_options=self._options | dict(autotuning.without))

    def _tuning_folder(self, notes: list[str]) -> TuningFolder:
        """What was measured before, from every directory of this program, as files; made when the first graph is to be compiled."""
        with self._tuning_lock:
            if self._tuning is None:
                known: dict[str, bytes] = {}
                for store, verdict in self._stores:
                    try:
                        known |= store.tuning() if verdict.stablehlo is None else {}
                    except ArtifactError as error:
                        notes.append(str(error))
                self._tuning = TuningFolder(known)
            return self._tuning

    def _keep_tuning(self, cache: GraphStore) -> None:
        with self._tuning_lock:
            if self._tuning is not None and (new := self._tuning.added()):
                cache.save_tuning(new)

    def _keep(
        self,
        cache: GraphStore,
        bucket: Bucket | UpkeepBucket,
        stablehlo: bytes,
        compiled: Any,
        seconds: float,
        memory: Mapping[str, int],
        notes: list[str],
    ) -> str:
        executable = None
        try:
            executable = pjrt.serialize(compiled)
        except ArtifactError as error:
            notes.append(str(error))
        try:
            cache.save(bucket.name, stablehlo=stablehlo, executable=executable, seconds=seconds, memory=memory)
            self._keep_tuning(cache)
        except (OSError, ArtifactError) as error:
            notes.append(f"cannot be kept: {error}")
        return executable_digest(executable) if executable else ""

    def _why(self, bucket: Bucket | UpkeepBucket, notes: list[str]) -> str:
        if notes:
            return "; ".join(notes)
        return "; ".join(
            f"{directory}: {verdict.executables or f'holds no executable of {bucket.name}'}" for directory, verdict in self.verdicts.items()
        )


def collect(futures: list[Future[Graph]], on_graph: Callable[[Graph, int], None]) -> dict[Bucket | UpkeepBucket, Graph]:
    """Wait for all graphs.

    Args:
        futures: from `Compiler.start`.
        on_graph: called with each graph as it gets ready, and how many are ready.
    """
    graphs: dict[Bucket | UpkeepBucket, Graph] = {}
    try:
        for future in as_completed(futures):
            graph = future.result()
            graphs[graph.bucket] = graph
            on_graph(graph, len(graphs))
    finally:
        for future in futures:
            future.cancel()
    return graphs


def export_all(spec: GraphSpec, jax_name: str, ladder: Ladder, store: GraphStore, on_graph: Callable[[str, int], None]) -> None:
    """Keep the portable form of every graph, for a platform whose compiler is not here.

    Args:
        spec: what the graphs have in common.
        jax_name: JAX's name of the platform.
        ladder: the buckets.
        store: where to keep them.
        on_graph: called with each graph's name and how many are kept.
    """
    for done, bucket in enumerate(ladder.graphs, start=1):
        store.save(bucket.name, stablehlo=export(spec, bucket, jax_name))
        on_graph(bucket.name, done)


def workspace_of(memory: Mapping[str, int]) -> int | None:
    """Bytes that a graph takes beside its arguments while it runs, or None where the platform does not tell.

    Args:
        memory: the compiler's analysis of the graph.
    """
    temp, output, alias = (memory.get(name, 0) for name in ("temp", "output", "alias"))
    return temp + output - alias if any(memory.values()) else None


def _family(bucket: Bucket | UpkeepBucket) -> Family:
    if isinstance(bucket, UpkeepBucket):
        return "upkeep"
    return "context" if isinstance(bucket, ContextBucket) else "generate"
