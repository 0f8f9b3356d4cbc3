"""Which static shapes exist, and which one a step takes: all bucket arithmetic, as pure functions. Imports no JAX.

A `context` graph computes chunks of up to S sequences, L tokens each; a `generate` graph computes one token each of up to B sequences.
Both read block tables P blocks wide. Ladders hold few graphs: each costs compile time, and each gap costs padding. What to pad up
and what to split off follows from what one run of each graph costs, measured on the device where it could be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xlaserve.errors import ConfigError

LAUNCH_TOKENS = 48
"""What running a graph costs before its first token, in tokens, where nothing has been measured: reading the weights once."""


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
        costs: nanoseconds of one run of each bucket. Without them, where there is no device to measure on, a run costs as many
            units as it has token places, and `LAUNCH_TOKENS`.
    """

    context: tuple[ContextBucket, ...]
    generate: tuple[GenerateBucket, ...]
    block_size: int
    costs: Mapping[Bucket, int] = field(default_factory=dict[Bucket, int], hash=False)
    # The context buckets with their costs. The generate buckets, cheapest first. For each number of blocks that a sequence ends with: a
    # list by number of blocks of what computing the last of them alone costs, in the cheapest chunks.
    _context: tuple[tuple[ContextBucket, int], ...] = field(init=False, repr=False, compare=False)
    _generate: tuple[GenerateBucket, ...] = field(init=False, repr=False, compare=False)
    _alone: tuple[Sequence[int], ...] = field(init=False, repr=False, compare=False)
    _most_rows: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_context", tuple((bucket, self.cost(bucket)) for bucket in self.context))
        object.__setattr__(self, "_generate", tuple(sorted(self.generate, key=lambda b: (self.cost(b), b))))
        object.__setattr__(self, "_alone", self._plan_alone())
        object.__setattr__(self, "_most_rows", max((bucket.rows for bucket in self.context), default=0))

    def cost(self, bucket: Bucket) -> int:
        """Predicted cost of one run: nanoseconds if they have been measured, else what the default model says."""
        return self.costs[bucket] if self.costs else bucket.tokens + LAUNCH_TOKENS

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """Every bucket: those that a first short request needs come first."""
        return (*self.generate, *self.context)

    @property
    def graphs(self) -> tuple[Bucket | UpkeepBucket, ...]:
        """Every graph that an engine needs: the buckets', and those that tend what the device keeps."""
        return (*self.buckets, *UPKEEP)

    def pick_generate(self, rows: int, width: int) -> GenerateBucket:
        """The cheapest generate bucket for `rows` sequences whose longest table has `width` blocks; the smallest of equals."""
        return next(b for b in self._generate if b.rows >= rows and b.width >= width)

    def pick_context(self, remaining: Sequence[int], starts: Sequence[int], budget: int) -> ContextChoice | None:
        """How to spend one context step on sequences in queue order.

        Every bucket that the budget allows is rated by what it saves over what it costs. A chunk saves what computing the sequence
        alone would cost before it, less what that would cost after it. So the next chunk of a sequence's cheapest split rates 1, a
        larger bucket rates less unless padding up is cheaper, and several sequences in one graph rate more where sharing pays. The best
        is taken, of equals the one that computes most tokens. The first sequence is always in it, so nothing starves.

        Args:
            remaining: tokens that each sequence still has to compute, at least 1 each; the widest tables must hold them.
            starts: tokens that each has computed, a multiple of the block size each.
            budget: most tokens to compute in this step.

        Returns:
            The choice, or None where the budget does not cover a single block of the first sequence.
        """
        size = self.block_size
        # For each sequence: its tokens, where they start, and by number of blocks what computing the last of it alone costs.
        queue = [
            (tokens, start, self._alone[-(-(start + tokens) // size)])
            for tokens, start in zip(remaining[: self._most_rows], starts[: self._most_rows], strict=True)
        ]
        best: tuple[ContextBucket, list[int]] | None = None
        best_rate, best_tokens = -1.0, 0
        for bucket, cost in self._context:
            longest, end, left, saved = bucket.length, bucket.width * size, budget, 0
            lengths: list[int] = []
            for tokens, start, alone in queue[: bucket.rows]:
                length = tokens if tokens <= longest else longest
                if length > left:
                    length = left
                if length < tokens:
                    # A chunk that is not a sequence's last ends with a block, so that the next one starts with one.
                    length -= length % size
                if length <= 0 or start + length > end:
                    break
                saved += alone[-(-tokens // size)] - alone[-(-(tokens - length) // size)]
                lengths.append(length)
                left -= length
            rate, computed = saved / cost, budget - left
            if computed and (rate > best_rate or (rate == best_rate and computed > best_tokens)):
                best, best_rate, best_tokens = (bucket, lengths), rate, computed
        return ContextChoice(best[0], tuple(best[1])) if best else None

    def _plan_alone(self) -> tuple[Sequence[int], ...]:
        """`_alone`: a sequence that ends in a number of blocks is computed in graphs whose tables hold as many."""
        plans: dict[tuple[tuple[int, int], ...], Sequence[int]] = {}
        by_width: dict[int, Sequence[int]] = {}
        for width in sorted({bucket.width for bucket in self.context}, reverse=True):
            chunks: dict[int, int] = {}
            for bucket, cost in self._context:
                if bucket.width >= width:
                    blocks = bucket.length // self.block_size
                    chunks[blocks] = min(cost, chunks.get(blocks, cost))
            key = tuple(sorted(chunks.items()))
            # Narrower tables that cost the same share the list of the widest.
            by_width[width] = plans[key] if key in plans else plans.setdefault(key, _cheapest_splits(key, width))
        lists: list[Sequence[int]] = []
        for width, costs in sorted(by_width.items()):
            lists += [costs] * (width + 1 - len(lists))
        return tuple(lists)


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


def _cheapest_splits(chunks: Sequence[tuple[int, int]], most: int) -> Sequence[int]:
    """For 0 to `most` blocks, the least that chunks cost that cover them; `chunks` are (blocks, cost)."""
    costs = [0]
    for blocks in range(1, most + 1):
        costs.append(min(cost + costs[max(0, blocks - covered)] for covered, cost in chunks))
    return costs


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
