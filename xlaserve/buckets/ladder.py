"""Which static shapes exist, and which one a step takes: all bucket arithmetic, as pure functions. Imports no JAX.

A `context` graph computes chunks of up to S sequences, L tokens each; a `generate` graph computes one token each of up to B sequences.
Both read block tables P blocks wide. Ladders hold few graphs: each costs compile time, and each gap costs padding. What to pad up
and what to split off follows from what one run of each graph costs, measured on the device where it could be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from xlaserve.errors import ConfigError

LAUNCH_TOKENS = 48
"""What running a graph costs before its first token, in tokens, where nothing has been measured: reading the weights once."""


_MOST_SHARING = 16
"""Sequences that share the places of a context graph at most: each has a row of logits, whether it has tokens or not."""


@dataclass(frozen=True, slots=True, order=True)
class ContextBucket:
    """Shape of a context-encoding graph: `rows` sequences of `length` tokens, block tables `width` blocks wide; or sequences that share
    `length` places, however they divide them.
    """

    rows: int
    length: int
    width: int
    shared: bool = False

    @property
    def name(self) -> str:
        """The graph's name in progress lines, manifests and files."""
        return f"context-{self.rows}{'in' if self.shared else 'x'}{self.length}-{self.width}"

    @property
    def tokens(self) -> int:
        """Token places in one call."""
        return self.length if self.shared else self.rows * self.length

    @property
    def share(self) -> int:
        """Tokens of each row where all rows have as many."""
        return self.tokens // self.rows


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
        compact: whether context graphs take time for the tokens that they compute only, and not for places without one.
    """

    context: tuple[ContextBucket, ...]
    generate: tuple[GenerateBucket, ...]
    block_size: int
    costs: Mapping[Bucket, int] = field(default_factory=dict[Bucket, int], hash=False)
    compact: bool = False
    # The context buckets, each with what a run costs by the blocks of tokens that it computes. The generate buckets, cheapest first. For
    # each number of blocks that a sequence ends with: a list by number of blocks of what computing the last of them alone costs, in the
    # cheapest chunks.
    _context: tuple[tuple[ContextBucket, Sequence[int]], ...] = field(init=False, repr=False, compare=False)
    _generate: tuple[GenerateBucket, ...] = field(init=False, repr=False, compare=False)
    _alone: tuple[Sequence[int], ...] = field(init=False, repr=False, compare=False)
    _most_rows: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_context", tuple((bucket, self._costs_by_blocks(bucket)) for bucket in self.context))
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

    def pick_context(self, remaining: Sequence[int], starts: Sequence[int], budget: int, beside: int = 0) -> ContextChoice | None:
        """How to spend one context step on sequences in queue order.

        Every bucket that the budget allows is rated by what it saves over what it costs. A chunk saves what computing the sequence
        alone would cost before it, less what that would cost after it. So the next chunk of a sequence's cheapest split rates 1, a
        larger bucket rates less unless padding up is cheaper, and several sequences in one graph rate more where sharing pays. What
        the step computes besides is added to each cost, so the more that is, the more of the prompts a step computes. The best
        is taken, of equals the one that computes most tokens. The first sequence is always in it, so nothing starves.

        Args:
            remaining: tokens that each sequence still has to compute, at least 1 each; the widest tables must hold them.
            starts: tokens that each has computed, a multiple of the block size each.
            budget: most tokens to compute in this step.
            beside: cost of what the step computes besides.

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
        for bucket, costs in self._context:
            room = min(budget, bucket.tokens)
            longest, end, left, saved = bucket.length, bucket.width * size, room, 0
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
            computed = room - left
            rate = saved / (costs[-(-computed // size)] + beside)
            if computed and (rate > best_rate or (rate == best_rate and computed > best_tokens)):
                best, best_rate, best_tokens = (bucket, lengths), rate, computed
        return ContextChoice(best[0], tuple(best[1])) if best else None

    def _costs_by_blocks(self, bucket: ContextBucket) -> Sequence[int]:
        """What a run costs by the blocks of tokens that it computes. Where only these count, that lies between what full runs of the next
        smaller and the next larger graph cost, of its kind if there is one, and is no less than what the smallest of all costs.
        """
        most = bucket.tokens // self.block_size
        if not self.compact:
            return [self.cost(bucket)] * (most + 1)
        alike = [b for b in self.context if b.width == bucket.width and b.shared == bucket.shared]
        smaller = [b for b in self.context if b.width == bucket.width and b.tokens < min(a.tokens for a in alike)]
        points = sorted({b.tokens // self.block_size: self.cost(b) for b in (*smaller, *alike)}.items())
        costs = [points[0][1]] * (points[0][0] + 1)
        for (low, cheaper), (high, dearer) in pairwise(points):
            costs += [cheaper + (dearer - cheaper) * (blocks - low) // (high - low) for blocks in range(low + 1, high + 1)]
        return costs[: most + 1]

    def _plan_alone(self) -> tuple[Sequence[int], ...]:
        """`_alone`: a sequence that ends in a number of blocks is computed in graphs whose tables hold as many."""
        plans: dict[tuple[tuple[tuple[int, int], ...], Sequence[int]], Sequence[int]] = {}
        by_width: dict[int, Sequence[int]] = {}
        for width in sorted({bucket.width for bucket in self.context}, reverse=True):
            chunks: dict[int, int] = {}
            last: Sequence[int] = ()
            for bucket, costs in self._context:
                if bucket.width >= width:
                    blocks = bucket.length // self.block_size
                    chunks[blocks] = min(costs[blocks], chunks.get(blocks, costs[blocks]))
                    if self.compact and len(costs) > len(last):
                        last = costs
            key = tuple(sorted(chunks.items())), tuple(last)
            # Narrower tables that cost the same share the list of the widest.
            by_width[width] = plans[key] if key in plans else plans.setdefault(key, _cheapest_splits(*key, width))
        lists: list[Sequence[int]] = []
        for width, plan in sorted(by_width.items()):
            lists += [plan] * (width + 1 - len(lists))
        return tuple(lists)


@dataclass(frozen=True, slots=True)
class LadderSizes:
    """What ladders follow from.

    Args:
        max_model_len: longest sequence in tokens.
        max_num_seqs: most sequences in one step.
        max_num_batched_tokens: most token places of one context graph.
        block_size: tokens per KV block.
        static_width: whether time and memory of a graph follow the width of its tables.
        context_lengths: tokens of a sequence's chunk that there are to be graphs for; empty to choose.
        generate_lengths: tokens of context that tables are to be wide enough for; empty to choose.
        compact: as `Ladder.compact`.
        fewest_rows: sequences that a generate graph for more than one is for, at least.
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    static_width: bool
    context_lengths: tuple[int, ...] = ()
    generate_lengths: tuple[int, ...] = ()
    compact: bool = False
    fewest_rows: int = 1

    @property
    def full(self) -> int:
        """Blocks of the longest sequence."""
        return -(-self.max_model_len // self.block_size)

    @property
    def widths(self) -> tuple[int, ...]:
        """Blocks that tables hold: by factors of two where a graph reads whole tables; where it reads what is in use, one serves all."""
        if self.generate_lengths:
            return tuple(sorted({length // self.block_size for length in self.generate_lengths}))
        return _doublings(min(8, self.full), self.full) if self.static_width else (self.full,)

    def context(self) -> list[ContextBucket]:
        """Lengths go up by factors of two; several sequences share a graph in fours, each with lengths by factors of four, because short
        prompts are where sharing pays. Where places without a token cost nothing, they share one row of places instead, which prompts of
        any lengths fill. Lengths that have been asked for are taken for any number of sequences that leaves room for them.
        """
        longest = min(self.max_num_batched_tokens // self.block_size, self.full)
        asked = sorted({length // self.block_size for length in self.context_lengths})
        buckets: list[ContextBucket] = []
        most = self.max_num_batched_tokens // self.block_size
        sharing = min(_MOST_SHARING, self.max_num_seqs, self.block_size) if self.compact else 1
        if sharing > 1:
            lengths = tuple(blocks for blocks in asked if blocks <= most) or _doublings(min(most, max(1, 128 // self.block_size)), most)
            buckets += [ContextBucket(sharing, blocks * self.block_size, width, shared=True) for blocks in lengths for width in self.widths]
        for rows in (1,) if self.compact else _powers(1, self.max_num_seqs, 4):
            limit = min(longest, self.max_num_batched_tokens // (rows * self.block_size))
            if asked:
                lengths = tuple(blocks for blocks in asked if blocks <= limit)
            else:
                lengths = _doublings(1, limit) if rows == 1 else _quads(limit, max(1, 32 // self.block_size))
            for blocks in lengths:
                buckets += [ContextBucket(rows, blocks * self.block_size, width) for width in self.widths if width >= blocks]
        return sorted(buckets)

    def generate(self) -> list[GenerateBucket]:
        """Numbers of sequences go up by factors of two, but for those between one and the fewest that are worth a graph."""
        fewest = min(self.fewest_rows, self.max_num_seqs)
        numbers = [rows for rows in _doublings(1, self.max_num_seqs) if rows == 1 or rows >= fewest]
        return sorted(GenerateBucket(rows, width) for rows in numbers for width in self.widths)


def make_ladder(
    *,
    max_model_len: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    block_size: int,
    static_width: bool,
    context_lengths: tuple[int, ...] = (),
    generate_lengths: tuple[int, ...] = (),
    compact: bool = False,
    fewest_rows: int = 1,
) -> Ladder:
    """The ladders for an engine's limits, which are `LadderSizes`.

    Raises:
        ConfigError: max_num_batched_tokens is smaller than a block; or the lengths that have been asked for are not whole blocks, can never
            be used, or leave a legal step without a graph.
    """
    sizes = LadderSizes(
        max_model_len,
        max_num_seqs,
        max_num_batched_tokens,
        block_size,
        static_width,
        context_lengths,
        generate_lengths,
        compact,
        fewest_rows,
    )
    if sizes.max_num_batched_tokens < sizes.block_size:
        raise ConfigError(
            f"max_num_batched_tokens must be at least the block size ({sizes.block_size}), got {sizes.max_num_batched_tokens}; "
            "raise it or lower --block-size."
        )
    _check_lengths(sizes)
    return Ladder(tuple(sizes.context()), tuple(sizes.generate()), sizes.block_size, compact=compact)


def _check_lengths(sizes: LadderSizes) -> None:
    size, longest = sizes.block_size, sizes.full * sizes.block_size
    for name, lengths in (("context_buckets", sizes.context_lengths), ("generate_buckets", sizes.generate_lengths)):
        for length in lengths:
            if length % size:
                near = max(size, length // size * size)
                raise ConfigError(f"{name} must be multiples of the block size {size}, got {length}: use {near} or {near + size}.")
            if length > longest:
                raise ConfigError(
                    f"{name} holds {length}, but no sequence has more than {longest} tokens: leave it out, or raise --max-model-len."
                )
    if sizes.context_lengths and max(sizes.context_lengths) > sizes.max_num_batched_tokens:
        most = max(sizes.context_lengths)
        raise ConfigError(
            f"context_buckets holds {most}, more than max_num_batched_tokens {sizes.max_num_batched_tokens}: leave it out, or use "
            f"--max-num-batched-tokens {most}."
        )
    if sizes.generate_lengths and max(sizes.generate_lengths) < longest:
        raise ConfigError(
            f"generate_buckets end at {max(sizes.generate_lengths)}, but sequences grow to max_model_len {sizes.max_model_len}: "
            f"add {longest}, or use --max-model-len {max(sizes.generate_lengths)}."
        )


def _cheapest_splits(chunks: Sequence[tuple[int, int]], alone: Sequence[int], most: int) -> Sequence[int]:
    """For 0 to `most` blocks, the least that chunks cost that cover them; `chunks` are (blocks, cost), `alone` the costs of single chunks
    that are no larger than what they cover, by their blocks, as far as they are known.
    """
    costs = [0]
    for blocks in range(1, most + 1):
        least = min(cost + costs[max(0, blocks - covered)] for covered, cost in chunks)
        costs.append(min(least, alone[blocks]) if blocks < len(alone) else least)
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
