"""Gets every bucket's executable before the engine is ready: from the store where it is there, else compiled and stored.

Graphs are lowered and compiled in a pool of threads: XLA works outside Python's lock.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
from jax.experimental import serialize_executable

from xlaserve import __version__
from xlaserve.buckets.graphs import GraphSpec, StepOutput, lower, scores_prompts
from xlaserve.buckets.ladder import BLANK, COPY, SEAT, Bucket, ContextBucket, Ladder, UpkeepBucket
from xlaserve.buckets.store import GraphStore
from xlaserve.errors import ArtifactError
from xlaserve.platforms.platform import Device, Family

Executable = Callable[..., Any]
"""A compiled step, or a compiled graph that tends what the device keeps; `xlaserve.buckets.graphs` says what they take and give."""
_STACK_BYTES = 64 << 20  # lowering recurses deeper than a thread's default stack


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph that is ready to run.

    Args:
        bucket: its shape.
        run: the executable.
        source: where it came from.
        seconds: how long that took.
        note: why it was compiled although the store had it, where that is so.
    """

    bucket: Bucket | UpkeepBucket
    run: Executable
    source: Literal["loaded", "compiled"]
    seconds: float
    note: str | None = None


class Compiler:
    """Prepares the graphs of one engine.

    Args:
        spec: what the graphs have in common.
        device: where they run.
        store: where executables are kept; None keeps none.
        threads: graphs prepared at once; None for one per core.
        compiling: what must hold while a graph of a family is compiled, as `Platform.compiling` gives it.
    """

    def __init__(
        self,
        spec: GraphSpec,
        device: Device,
        store: GraphStore | None,
        threads: int | None = None,
        compiling: Callable[[Family], AbstractContextManager[None]] = lambda _family: nullcontext(),
    ) -> None:
        self._spec = spec
        self._device = device
        self._store = store
        self._compiling = compiling
        self._threads = threads or os.cpu_count() or 1

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
        note = None
        if self._store is not None:
            try:
                if (content := self._store.load(bucket.name)) is not None:
                    return Graph(bucket, self._load(bucket, content), "loaded", time.monotonic() - began)
            except ArtifactError as error:
                note = str(error)
        with self._compiling(_family(bucket)):
            compiled = lower(self._spec, bucket, self._device).compile()
        seconds = time.monotonic() - began
        if self._store is not None:
            try:
                self._store.save(bucket.name, serialize_executable.serialize(compiled)[0], seconds=round(seconds, 3), **_memory(compiled))
            except OSError as error:
                note = f"cannot be kept: {error}"
        return Graph(bucket, compiled, "compiled", seconds, note)

    def _load(self, bucket: Bucket | UpkeepBucket, content: bytes) -> Executable:
        try:
            return serialize_executable.deserialize_and_load(
                content, *_trees(self._spec, bucket), backend=self._device.platform, execution_devices=[self._device]
            )
        except Exception as error:  # whatever the platform's loader raises: the graph can be compiled again
            raise ArtifactError(f"{bucket.name}: stored executable does not load: {error}") from error


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


def store_key(spec: GraphSpec, platform: dict[str, str]) -> dict[str, Any]:
    """Everything that the executables of `spec` depend on, for `GraphStore`."""
    return {
        "xlaserve": __version__,
        **{package: version(package) for package in ("jax", "jaxlib", "flax")},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "jax_config": {name: jax.config.values[name] for name in ("jax_default_matmul_precision", "jax_enable_x64")},
        "platform": platform,
        **asdict(spec),
        "source": _source_digest(),
    }


def _source_digest() -> str:
    """sha256 of the modules that graphs are traced from, found by following imports: a change of their code is a change of graphs."""
    package = Path(__file__).resolve().parents[1]
    found: dict[str, bytes] = {}
    queue = ["xlaserve.buckets.graphs"]
    while queue:
        module = queue.pop()
        path = package.joinpath(*module.split(".")[1:]).with_suffix(".py")
        if module not in found and path.is_file():
            found[module] = path.read_bytes()
            queue += re.findall(r"^from (xlaserve[\w.]+) import", found[module].decode(), re.MULTILINE)
    return hashlib.sha256(b"".join(found[module] for module in sorted(found))).hexdigest()[:16]


def _trees(spec: GraphSpec, bucket: Bucket | UpkeepBucket) -> tuple[Any, Any]:
    """Structures of a graph's arguments and results, which executables need to be loaded."""
    params, kv, state = (0,) * len(spec.parameters()), (0,) * len(spec.kv()), spec.state()
    if bucket == COPY:
        return jax.tree.structure(((kv, 0, 0), {})), jax.tree.structure(kv)
    if bucket == BLANK:
        return jax.tree.structure(((), {})), jax.tree.structure((kv, state))
    if bucket == SEAT:
        return jax.tree.structure(((state, *(0 for _ in state)), {})), jax.tree.structure(state)
    assert not isinstance(bucket, UpkeepBucket)
    output: Any = StepOutput(0, 0, 0 if scores_prompts(spec, bucket) else None)  # type: ignore[arg-type]
    return jax.tree.structure(((params, kv, state, 0), {})), jax.tree.structure((kv, state, output))


def _family(bucket: Bucket | UpkeepBucket) -> Family:
    if isinstance(bucket, UpkeepBucket):
        return "upkeep"
    return "context" if isinstance(bucket, ContextBucket) else "generate"


def workspace_of(executable: Executable) -> int | None:
    """Bytes that a graph takes beside its arguments while it runs, or None where the platform does not tell."""
    memory = _memory(executable) if isinstance(executable, jax.stages.Compiled) else {}
    return memory["temp"] + memory["output"] - memory["alias"] if any(memory.values()) else None


def _memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    analysis = compiled.memory_analysis()
    return {name: int(getattr(analysis, f"{name}_size_in_bytes", 0)) for name in ("argument", "output", "alias", "temp")}
