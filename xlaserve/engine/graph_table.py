"""What each graph of a running engine is, where it came from, and how it is used. Counting costs a dictionary access a run. No JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from xlaserve.buckets.ladder import Bucket, ContextBucket, Ladder


class GraphOrigin(NamedTuple):
    """How a graph came to be.

    Args:
        source: "loaded", or how it was compiled.
        seconds: how long that took.
    """

    source: str
    seconds: float


class GraphReport(NamedTuple):
    """One graph.

    Args:
        name: of its bucket.
        family: what it is for.
        rows: sequences that it takes.
        length: token places of a row.
        context: tokens of a sequence that its block tables reach.
        source: where it came from.
        seconds: how long that took.
        run_seconds: what one run of it takes, as measured when the engine was built; None where nothing was.
        runs: how often it ran since then.
        tokens: tokens that these runs computed for sequences.
        padding: token places in these runs that were padding.
    """

    name: str
    family: Literal["context", "generate"]
    rows: int
    length: int
    context: int
    source: str
    seconds: float
    run_seconds: float | None
    runs: int
    tokens: int
    padding: int


class GraphTable:
    """The graphs of an engine.

    Args:
        ladder: whose buckets they are.
        origins: how each came to be, by name.
    """

    def __init__(self, ladder: Ladder, origins: Mapping[str, GraphOrigin]) -> None:
        self._ladder = ladder
        self._origins = dict(origins)
        self._uses: dict[Bucket, list[int]] = {bucket: [0, 0] for bucket in ladder.buckets}

    def count(self, bucket: Bucket, tokens: int) -> None:
        """A graph was started.

        Args:
            bucket: which.
            tokens: how many it computes for sequences.
        """
        uses = self._uses[bucket]
        uses[0] += 1
        uses[1] += tokens

    def report(self) -> list[GraphReport]:
        """All graphs that compute tokens, token generation first, the smallest first."""
        return [self._graph(bucket, runs, tokens) for bucket, (runs, tokens) in self._uses.items()]

    def _graph(self, bucket: Bucket, runs: int, tokens: int) -> GraphReport:
        ladder = self._ladder
        length = bucket.length if isinstance(bucket, ContextBucket) else 1
        origin = self._origins.get(bucket.name, GraphOrigin("", 0.0))
        return GraphReport(
            name=bucket.name,
            family="context" if isinstance(bucket, ContextBucket) else "generate",
            rows=bucket.rows,
            length=length,
            context=bucket.width * ladder.block_size,
            source=origin.source,
            seconds=origin.seconds,
            run_seconds=ladder.costs[bucket] / 1e9 if ladder.costs else None,
            runs=runs,
            tokens=tokens,
            padding=runs * bucket.tokens - tokens,
        )
