"""Which static shapes exist, and which one a step takes: all bucket arithmetic, as pure functions. Imports no JAX.

A `context` graph computes chunks of up to S sequences, L tokens each; a `generate` graph computes one token each of up to B sequences.
Both read block tables P blocks wide. Ladders hold few graphs: each costs compile time, and each gap costs padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xlaserve.errors import ConfigError

LAUNCH_TOKENS = 48
"""What running a context graph costs before its first token, in tokens: reading the weights once."""


@dataclass(frozen=True, slots=True, order=True)
class ContextBucket:
    """Shape of a context-encoding graph: `rows` sequences of `length` tokens, block tables `width` blocks wide."""

    rows: int
    length: int
    width: int

    @property
    def name(self) -> str:
        """The graph's name in progress lines, manifests and files."""
        return f"context-{self.rows}x{self.length}-{self.width}"

    @property
    def tokens(self) -> int:
        """Token places in one call."""
        return self.rows * self.length


@dataclass(frozen=True, slots=True, order=True)
class GenerateBucket:
    """Shape of a token-generation graph: one token of each of `rows` sequences, block tables `width` blocks wide."""

    rows: int
    width: int

    @property
    def name(self) -> str:
        """The graph's name in progress lines, manifests and files."""
        return f"generate-{self.rows}-{self.width}"

    @property
    def tokens(self) -> int:
        """Token places in one call."""
        return self.rows


Bucket = ContextBucket | GenerateBucket


@dataclass(frozen=True, slots=True)
class UpkeepBucket:
    """A graph that tends what the device keeps between steps. It has one shape, and there is one of each.

    Args:
        name: in progress lines, manifests and files.
    """

    name: str


SEAT = UpkeepBucket("seat")
"""Loads a slot's state: penalties, biases and bad words of the sequence that takes the slot."""

COPY = UpkeepBucket("copy")
"""Copies KV blocks, `COPIES` at once."""

COPIES = 16

BLANK = UpkeepBucket("blank")
"""Makes all of it, zeroed: when the engine starts, and when it wakes."""

UPKEEP = (SEAT, COPY, BLANK)


@dataclass(frozen=True, slots=True)
class ContextChoice:
    """A context step: its bucket, and how many tokens each of the first sequences in the queue computes."""

    bucket: ContextBucket
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ladder:
    """All buckets of an engine, smallest first.

    Args:
        context: context-encoding buckets.
        generate: token-generation buckets.
        block_size: tokens per KV block; every context length is a multiple of it.
    """

    context: tuple[ContextBucket, ...]
    generate: tuple[GenerateBucket, ...]
    block_size: int

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """Every bucket: those that a first short request needs come first."""
        return (*self.generate, *self.context)

    @property
    def graphs(self) -> tuple[Bucket | UpkeepBucket, ...]:
        """Every graph that an engine needs: the buckets', and those that tend what the device keeps."""
        return (*self.buckets, *UPKEEP)

    def pick_generate(self, rows: int, width: int) -> GenerateBucket:
        """The smallest generate bucket for `rows` sequences whose longest table has `width` blocks."""
        return min((b for b in self.generate if b.rows >= rows and b.width >= width), key=lambda b: (b.rows, b.width))

    def pick_context(self, remaining: Sequence[int], starts: Sequence[int], budget: int) -> ContextChoice | None:
        """How to spend one context step on sequences in queue order.

        Every bucket that the budget allows is rated by useful tokens over cost (its token places and the launch); the best is taken,
        the larger of equals. The first sequence is always in it, so nothing starves.

        Args:
            remaining: tokens that each sequence still has to compute, at least 1 each.
            starts: tokens that each has computed, a multiple of the block size each.
            budget: most tokens to compute in this step.

        Returns:
            The choice, or None where the budget does not cover a single block of the first sequence.
        """
        best: tuple[float, int, ContextChoice] | None = None
        for bucket in self.context:
            lengths = self._fill(bucket, remaining, starts, budget)
            if not lengths:
                continue
            useful = sum(lengths)
            # What a chunk leaves over needs another launch, and half a block of padding on average.
            unfinished = any(length < tokens for length, tokens in zip(lengths, remaining, strict=False))
            rating = useful / (bucket.tokens + LAUNCH_TOKENS + unfinished * (LAUNCH_TOKENS + self.block_size) / 2)
            if best is None or (rating, useful) > best[:2]:
                best = rating, useful, ContextChoice(bucket, tuple(lengths))
        return best[2] if best else None

    def _fill(self, bucket: ContextBucket, remaining: Sequence[int], starts: Sequence[int], budget: int) -> list[int]:
        lengths: list[int] = []
        for tokens, start in zip(remaining[: bucket.rows], starts[: bucket.rows], strict=True):
            length = min(tokens, bucket.length, budget)
            if length < tokens:
                # A chunk that is not a sequence's last ends with a block, so that the next one starts with one.
                length -= length % self.block_size
            if length <= 0 or -(-(start + length) // self.block_size) > bucket.width:
                break
            lengths.append(length)
            budget -= length
        return lengths


def make_ladder(*, max_model_len: int, max_num_seqs: int, max_num_batched_tokens: int, block_size: int, static_width: bool) -> Ladder:
    """The ladders for an engine's limits.

    Context lengths and numbers of sequences go up by factors of two; several sequences share a context graph in fours, each with
    lengths by factors of four, because short prompts are where sharing pays. Where a graph reads whole block tables (`static_width`)
    widths go up by factors of two; where it reads what is in use, there is one width for all.

    Args:
        max_model_len: longest sequence in tokens.
        max_num_seqs: most sequences in one step.
        max_num_batched_tokens: most token places of one context graph.
        block_size: tokens per KV block.
        static_width: whether time and memory of a graph follow the width of its tables.

    Raises:
        ConfigError: max_num_batched_tokens is smaller than a block.
    """
    if max_num_batched_tokens < block_size:
        raise ConfigError(
            f"max_num_batched_tokens must be at least the block size ({block_size}), got {max_num_batched_tokens}; "
            "raise it or lower --block-size."
        )
    full = -(-max_model_len // block_size)
    longest = min(max_num_batched_tokens // block_size, full)
    widths = _doublings(min(8, full), full) if static_width else (full,)
    context: list[ContextBucket] = []
    for rows in _powers(1, max_num_seqs, 4):
        limit = min(longest, max_num_batched_tokens // (rows * block_size))
        for blocks in _doublings(1, limit) if rows == 1 else _quads(limit, max(1, 32 // block_size)):
            context += [ContextBucket(rows, blocks * block_size, width) for width in widths if width >= blocks]
    generate = [GenerateBucket(rows, width) for rows in _doublings(1, max_num_seqs) for width in widths]
    return Ladder(tuple(sorted(context)), tuple(sorted(generate)), block_size)


def _doublings(low: int, high: int) -> tuple[int, ...]:
    """low, 2 low, 4 low ... and high itself."""
    return _powers(low, high, 2) + ((high,) if high > low and high not in _powers(low, high, 2) else ())


def _quads(high: int, low: int) -> tuple[int, ...]:
    """high, high / 4, high / 16 ... down to low; empty where high is below low."""
    steps: list[int] = []
    while high >= low:
        steps.append(high)
        high //= 4
    return tuple(steps)


def _powers(low: int, high: int, factor: int) -> tuple[int, ...]:
    """low, factor low, factor^2 low ... not beyond high."""
    steps: list[int] = []
    while low <= high:
        steps.append(low)
        low *= factor
    return tuple(steps)
