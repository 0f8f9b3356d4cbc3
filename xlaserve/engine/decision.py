"""What one iteration computes, as the scheduler decides it. Plain data, no JAX."""

from __future__ import annotations

from dataclasses import dataclass

from xlaserve.buckets.ladder import ContextBucket, GenerateBucket
from xlaserve.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """Part of one sequence in a context step: `length` tokens from place `start`; the last chunk samples a token."""

    sequence: Sequence
    start: int
    length: int
    samples: bool


@dataclass(frozen=True, slots=True)
class ContextStep:
    """One context-encoding graph and its rows."""

    bucket: ContextBucket
    chunks: tuple[Chunk, ...]

    @property
    def tokens(self) -> int:
        """Tokens that it computes."""
        return sum(chunk.length for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class GenerateStep:
    """One token-generation graph and its rows; `starts` are the places of the tokens that each row computes."""

    bucket: GenerateBucket
    sequences: tuple[Sequence, ...]
    starts: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens that it computes."""
        return len(self.sequences)


@dataclass(frozen=True, slots=True)
class Decision:
    """What one iteration computes: at most one graph of each family, after KV blocks have been copied, source to target."""

    generate: GenerateStep | None
    context: ContextStep | None
    copies: tuple[tuple[int, int], ...] = ()

    @property
    def rows(self) -> list[list[tuple[Sequence, bool]]]:
        """The rows of each graph, in the order in which they run: sequence, and whether its row samples a token."""
        rows = [[(sequence, True) for sequence in self.generate.sequences]] if self.generate else []
        return rows + ([[(chunk.sequence, chunk.samples) for chunk in self.context.chunks]] if self.context else [])

    @property
    def graphs(self) -> tuple[str, ...]:
        """The names of its graphs, in the order in which they run."""
        return tuple(step.bucket.name for step in (self.generate, self.context) if step is not None)

    @property
    def tokens(self) -> int:
        """Tokens that it computes."""
        return (self.generate.tokens if self.generate else 0) + (self.context.tokens if self.context else 0)

    @property
    def places(self) -> int:
        """Token places of its graphs, padding included."""
        return (self.generate.bucket.tokens if self.generate else 0) + (self.context.bucket.tokens if self.context else 0)
