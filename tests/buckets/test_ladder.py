"""Bucket arithmetic: every legal step has a bucket, the cheapest way is taken, padding is bounded, and there are few graphs."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tooling.properties import examples
from xlaserve.buckets.ladder import Bucket, ContextBucket, ContextChoice, GenerateBucket, Ladder, make_ladder
from xlaserve.errors import ConfigError


@dataclass(frozen=True)
class Sizes:
    """What `make_ladder` takes."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    static_width: bool
    context_lengths: tuple[int, ...] = ()
    generate_lengths: tuple[int, ...] = ()

    def ladder(self) -> Ladder:
        return make_ladder(
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            block_size=self.block_size,
            static_width=self.static_width,
            context_lengths=self.context_lengths,
            generate_lengths=self.generate_lengths,
        )

    @property
    def full(self) -> int:
        """Blocks of the longest sequence."""
        return -(-self.max_model_len // self.block_size)


@st.composite
def sizes(draw: st.DrawFn) -> Sizes:
    block = draw(st.sampled_from((1, 2, 16, 128)))
    return Sizes(
        max_model_len=min(1024 * block, draw(st.one_of(st.integers(2, 5000), st.sampled_from((2, 127, 129, 2048, 8192, 131_072))))),
        max_num_seqs=draw(st.sampled_from((1, 2, 3, 4, 5, 8, 16, 31, 32, 33, 64, 100, 256))),
        max_num_batched_tokens=draw(st.one_of(st.integers(block, block + 2100), st.sampled_from((block, 2 * block + 1, block + 512)))),
        block_size=block,
        static_width=draw(st.booleans()),
    )


@dataclass(frozen=True)
class Queue:
    """Sequences that wait for context encoding, and the ladder that they choose from."""

    sizes: Sizes
    ladder: Ladder
    remaining: list[int]
    starts: list[int]
    budget: int


def random_costs(ladder: Ladder, rng: random.Random) -> Ladder:
    """As a device might give: any costs, or some that follow the places; or those of the default model."""
    kind = rng.choice(("default", "any", "places"))
    if kind == "default":
        return ladder
    launch = rng.randint(0, 10**6)
    return replace(
        ladder,
        costs={b: rng.randint(1, 10**6) if kind == "any" else launch + b.tokens * rng.randint(900, 1100) for b in ladder.buckets},
    )


@st.composite
def queues(draw: st.DrawFn) -> Queue:
    size = draw(sizes())
    rng = random.Random(draw(st.integers(0, 2**32)))
    remaining, starts = [], []
    for _ in range(draw(st.integers(1, 2 * min(size.max_num_seqs, 40)))):
        scale = rng.choice((1, 4, 20, 100, size.max_model_len))
        tokens = rng.randint(1, min(size.max_model_len, max(1, scale)))
        start = rng.choice((0, 0, rng.randint(0, (size.max_model_len - tokens) // size.block_size) * size.block_size))
        remaining.append(tokens)
        starts.append(start)
    budget = draw(st.one_of(st.just(size.max_num_batched_tokens), st.integers(-64, size.max_num_batched_tokens)))
    return Queue(size, random_costs(size.ladder(), rng), remaining, starts, budget)


@examples(150)
@given(sizes(), st.data())
def test_without_measured_costs_generate_steps_have_their_smallest_bucket(size: Sizes, data: st.DataObject) -> None:
    ladder = size.ladder()
    rows, width = data.draw(st.integers(1, size.max_num_seqs)), data.draw(st.integers(1, size.full))
    chosen = ladder.pick_generate(rows, width)
    fits = [b for b in ladder.generate if b.rows >= rows and b.width >= width]
    assert chosen in fits
    assert all(b.rows >= chosen.rows and (b.rows > chosen.rows or b.width >= chosen.width) for b in fits)
    # Never twice what is asked for, in either direction; widths below eight blocks share one graph.
    assert chosen.rows < 2 * rows
    assert chosen.width < 2 * width or chosen.width == min(8, size.full) or not size.static_width


@examples(150)
@given(sizes(), st.data())
def test_every_generate_step_has_its_cheapest_bucket(size: Sizes, data: st.DataObject) -> None:
    ladder = random_costs(size.ladder(), random.Random(data.draw(st.integers(0, 2**32))))
    rows, width = data.draw(st.integers(1, size.max_num_seqs)), data.draw(st.integers(1, size.full))
    fits = [b for b in ladder.generate if b.rows >= rows and b.width >= width]
    assert ladder.pick_generate(rows, width) == min(fits, key=lambda b: (ladder.cost(b), b.rows, b.width))


@examples(150)
@given(sizes(), st.data())
def test_generate_buckets_grow_with_the_step(size: Sizes, data: st.DataObject) -> None:
    ladder = size.ladder()
    rows = sorted(data.draw(st.lists(st.integers(1, size.max_num_seqs), min_size=2, max_size=2)))
    widths = sorted(data.draw(st.lists(st.integers(1, size.full), min_size=2, max_size=2)))
    small, large = ladder.pick_generate(rows[0], widths[0]), ladder.pick_generate(rows[1], widths[1])
    assert small.rows <= large.rows
    assert small.width <= large.width


def check_legal(queue: Queue, choice: ContextChoice) -> None:
    """What every choice must keep to, whatever the queue."""
    bucket, block = choice.bucket, queue.sizes.block_size
    assert bucket in queue.ladder.context
    assert 1 <= len(choice.lengths) <= min(bucket.rows, len(queue.remaining))
    assert sum(choice.lengths) <= queue.budget
    for length, remaining, start in zip(choice.lengths, queue.remaining, queue.starts, strict=False):
        assert 1 <= length <= min(remaining, bucket.length)
        assert start + length <= bucket.width * block
        if length < remaining:
            assert length % block == 0, "a chunk that is not the last must end with a block"


@examples(300)
@given(queues())
def test_every_context_step_is_legal_and_goes_on(queue: Queue) -> None:
    choice = queue.ladder.pick_context(queue.remaining, queue.starts, queue.budget)
    first = min(queue.remaining[0], queue.budget)
    if first >= min(queue.remaining[0], queue.sizes.block_size):
        assert choice is not None, "the budget covers a block of the first sequence, or all of it"
    if choice is not None:
        check_legal(queue, choice)


@examples(200)
@given(queues())
def test_chunks_reach_the_end_of_every_sequence(queue: Queue) -> None:
    """Steps with the whole budget finish any queue, at no more cost than one sequence after the other, each split in the cheapest way."""
    size, ladder = queue.sizes, queue.ladder
    remaining, starts = [min(tokens, 64 * size.block_size) for tokens in queue.remaining[:4]], queue.starts[:4]
    bound = sum(cheapest(ladder, tokens, start) for tokens, start in zip(remaining, starts, strict=True))
    spent = 0
    while remaining:
        choice = ladder.pick_context(remaining, starts, size.max_num_batched_tokens)
        assert choice is not None
        check_legal(Queue(size, ladder, remaining, starts, size.max_num_batched_tokens), choice)
        spent += ladder.cost(choice.bucket)
        for i, length in enumerate(choice.lengths):
            remaining[i] -= length
            starts[i] += length
        left = [i for i, r in enumerate(remaining) if r]
        remaining, starts = [remaining[i] for i in left], [starts[i] for i in left]
        assert all(start % size.block_size == 0 for start in starts)
    assert spent <= bound


def cheapest(ladder: Ladder, remaining: int, start: int) -> int:
    """What one sequence costs, tried out: all its chunks alone in their graphs, in tables as wide as its end needs."""
    size = ladder.block_size
    width = min(b.width for b in ladder.context if b.width * size >= start + remaining)
    chunks = [(b.length, ladder.cost(b)) for b in ladder.context if b.width >= width]

    @functools.cache
    def rest(tokens: int) -> int:
        return min((cost + rest(max(0, tokens - length)) for length, cost in chunks), default=0) if tokens else 0

    # From the short end, which keeps the recursion flat.
    for blocks in range(remaining // size):
        rest(remaining % size + blocks * size)
    return rest(remaining)


@examples(300)
@given(queues())
def test_the_choice_saves_most_for_its_cost(queue: Queue) -> None:
    """Against all choices tried out: tokens are worth what they cost alone, and no choice gives more of that for its own cost."""
    ladder, block = queue.ladder, queue.sizes.block_size
    remaining = [min(tokens, 20 * block) for tokens in queue.remaining]

    def value(lengths: tuple[int, ...]) -> int:
        total = 0
        for tokens, start, length in zip(remaining, queue.starts, lengths, strict=False):
            # What is left over ends where the sequence ends, so it is computed in tables of the same width.
            total += cheapest(ladder, tokens, start) - (cheapest(ladder, tokens - length, start + length) if length < tokens else 0)
        return total

    def fill(bucket: ContextBucket) -> tuple[int, ...]:
        lengths: tuple[int, ...] = ()
        for tokens, start in zip(remaining[: bucket.rows], queue.starts, strict=False):
            length = min(tokens, bucket.length, max(0, queue.budget - sum(lengths)))
            length = length if length == tokens else length // block * block
            if not length or math.ceil((start + length) / block) > bucket.width:
                break
            lengths += (length,)
        return lengths

    filled = {bucket: fill(bucket) for bucket in ladder.context}
    rated = {b: (Fraction(value(lengths), ladder.cost(b)), sum(lengths)) for b, lengths in filled.items() if lengths}
    choice = ladder.pick_context(remaining, queue.starts, queue.budget)
    if choice is None:
        assert not rated
    else:
        assert choice.lengths == filled[choice.bucket]
        assert rated[choice.bucket] == max(rated.values())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("block", "batched"), [(16, 512), (16, 2048), (128, 1024)])
def test_one_prompt_costs_what_the_best_plan_costs(block: int, batched: int, seed: int) -> None:
    """Choosing step by step costs what the best sequence of steps costs."""
    ladder = make_ladder(max_model_len=8192, max_num_seqs=32, max_num_batched_tokens=batched, block_size=block, static_width=False)
    ladder = random_costs(ladder, random.Random(seed))
    for tokens in range(1, 2 * batched, 13):
        cost, start = 0, 0
        while start < tokens:
            choice = ladder.pick_context([tokens - start], [start], batched)
            assert choice is not None
            cost += ladder.cost(choice.bucket)
            start += choice.lengths[0]
        assert cost == cheapest(ladder, tokens, 0), tokens


def small_ladder(**costs: int) -> Ladder:
    """Three lengths for one row, one for four, and generate graphs for 1, 2 and 4; `costs` by name with _ for -, the rest as placed."""
    context = (ContextBucket(1, 16, 8), ContextBucket(1, 32, 8), ContextBucket(1, 64, 8), ContextBucket(4, 32, 8))
    ladder = Ladder(context, tuple(GenerateBucket(rows, 8) for rows in (1, 2, 4)), 16)
    named: dict[Bucket, int] = {b: costs.pop(b.name.replace("-", "_"), 10 * b.tokens) for b in ladder.buckets}
    assert not costs
    return replace(ladder, costs=named)


def test_dear_padding_is_split_off() -> None:
    """40 tokens in 64 places cost more than in 32 and 16."""
    ladder = small_ladder(context_1x64_8=500, context_1x32_8=300, context_1x16_8=190)
    assert ladder.pick_context([40], [0], 64) == ContextChoice(ContextBucket(1, 32, 8), (32,))
    assert ladder.pick_context([8], [32], 64) == ContextChoice(ContextBucket(1, 16, 8), (8,))


def test_cheap_padding_is_padded_up() -> None:
    """40 tokens in 64 places cost less than in 32 and 16; so do 8 in 32 than in 16."""
    ladder = small_ladder(context_1x64_8=480, context_1x32_8=180, context_1x16_8=301)
    assert ladder.pick_context([40], [0], 64) == ContextChoice(ContextBucket(1, 32, 8), (32,))
    ladder = small_ladder(context_1x64_8=359, context_1x32_8=180, context_1x16_8=301)
    assert ladder.pick_context([40], [0], 64) == ContextChoice(ContextBucket(1, 64, 8), (40,))
    assert ladder.pick_context([8], [0], 64) == ContextChoice(ContextBucket(1, 32, 8), (8,))


def test_prompts_share_where_that_is_cheaper() -> None:
    cheap, dear = small_ladder(context_4x32_8=959), small_ladder(context_4x32_8=961)
    assert cheap.pick_context([30, 20, 32], [0, 0, 0], 128) == ContextChoice(ContextBucket(4, 32, 8), (30, 20, 32))
    assert dear.pick_context([30, 20, 32], [0, 0, 0], 128) == ContextChoice(ContextBucket(1, 32, 8), (30,))


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    """A short prompt alone uses its graph badly; that is no reason to let it share a large one with a piece of a long prompt."""
    ladder = Sizes(8192, 32, 512, 16, False).ladder()
    assert ladder.pick_context([40, 500], [0, 0], 512) == ContextChoice(ContextBucket(1, 64, 512), (40,))


@pytest.mark.parametrize(("most", "rows"), [(1, [1]), (3, [1, 3]), (8, [1, 8]), (12, [1, 8, 12]), (64, [1, 8, 16, 32, 64])])
def test_few_sequences_have_no_graphs_of_their_own_where_these_are_no_faster(most: int, rows: list[int]) -> None:
    ladder = make_ladder(max_model_len=64, max_num_seqs=most, max_num_batched_tokens=128, block_size=16, static_width=False, fewest_rows=8)
    assert [bucket.rows for bucket in ladder.generate] == rows
    assert [ladder.pick_generate(count, 1).rows for count in range(1, most + 1)] == [
        next(number for number in rows if number >= count) for count in range(1, most + 1)
    ]


def compact_ladder(per_token: int = 10, launch: int = 200) -> Ladder:
    """Where only tokens cost time: 128 to 512 places shared by 16 sequences, and what a sequence alone has."""
    ladder = make_ladder(max_model_len=2048, max_num_seqs=32, max_num_batched_tokens=512, block_size=16, static_width=False, compact=True)
    return replace(ladder, costs={bucket: launch + per_token * bucket.tokens for bucket in ladder.buckets})


def test_sequences_share_places_where_only_tokens_cost() -> None:
    assert [b.name for b in compact_ladder().context] == [
        *(f"context-1x{length}-128" for length in (16, 32, 64, 128, 256, 512)),
        *(f"context-16in{length}-128" for length in (128, 256, 512)),
    ]


def test_shared_places_are_filled_with_whatever_is_in_line() -> None:
    """The last chunk is cut where the places end, at a block; graphs are no larger than what they compute."""
    ladder = compact_ladder()
    full, small, alone = ContextBucket(16, 512, 128, True), ContextBucket(16, 128, 128, True), ContextBucket(1, 512, 128)
    assert ladder.pick_context([150, 200, 30, 90, 250], [0] * 5, 512) == ContextChoice(full, (150, 200, 30, 90, 32))
    assert ladder.pick_context([150, 200, 30, 90, 250], [0] * 5, 480) == ContextChoice(full, (150, 200, 30, 90))
    assert ladder.pick_context([30, 20], [0, 0], 512) == ContextChoice(small, (30, 20))
    assert ladder.pick_context([20] * 20, [0] * 20, 512) == ContextChoice(full, (20,) * 16)
    # Places without a token cost nothing, so nothing is split off.
    assert ladder.pick_context([300], [0], 512) == ContextChoice(alone, (300,))


def test_the_longer_the_rest_of_a_step_takes_the_more_of_the_prompts_it_computes() -> None:
    ladder = small_ladder(context_1x16_8=160, context_1x32_8=330, context_1x64_8=650)
    assert ladder.pick_context([64], [0], 64) == ContextChoice(ContextBucket(1, 16, 8), (16,))
    assert ladder.pick_context([64], [0], 64, beside=100) == ContextChoice(ContextBucket(1, 64, 8), (64,))


def test_more_rows_are_taken_where_they_are_cheaper() -> None:
    ladder = small_ladder(generate_1_8=30, generate_2_8=25, generate_4_8=25)
    assert [ladder.pick_generate(rows, 1).rows for rows in (1, 2, 3, 4)] == [2, 2, 4, 4]


@pytest.mark.parametrize("static_width", [False, True])
@pytest.mark.parametrize(("block", "batched"), [(16, 512), (16, 2048), (128, 1024)])
def test_mixed_prompts_pad_little(block: int, batched: int, static_width: bool) -> None:
    """Long queues of mixed prompts: at most a third of all places is padding, against half that powers of two would allow."""
    rng = random.Random(0)
    ladder = make_ladder(max_model_len=4096, max_num_seqs=32, max_num_batched_tokens=batched, block_size=block, static_width=static_width)
    useful = places = 0
    for _ in range(40):
        remaining = [min(4000, max(1, int(rng.lognormvariate(5, 1.2)))) for _ in range(32)]
        starts = [0] * 32
        while remaining:
            choice = ladder.pick_context(remaining, starts, batched)
            assert choice is not None
            useful += sum(choice.lengths)
            places += choice.bucket.tokens
            for i, length in enumerate(choice.lengths):
                remaining[i] -= length
                starts[i] += length
            left = [i for i, r in enumerate(remaining) if r]
            remaining, starts = [remaining[i] for i in left], [starts[i] for i in left]
    assert 1 - useful / places < 1 / 3


@examples(150)
@given(sizes())
def test_the_number_of_graphs_stays_small(size: Sizes) -> None:
    """The logarithm of each limit, multiplied only where shapes really differ."""
    ladder = size.ladder()
    widths = math.ceil(math.log2(max(1, size.full / 8))) + 1 if size.static_width else 1
    row_steps = math.ceil(math.log2(size.max_num_seqs)) + 1
    lengths = math.ceil(math.log2(max(1, size.max_num_batched_tokens // size.block_size))) + 1
    assert len(ladder.generate) <= row_steps * widths
    assert len(ladder.context) <= (lengths + (row_steps // 2) * (lengths // 2 + 1)) * widths
    assert len(set(ladder.buckets)) == len(ladder.buckets) == len({b.name for b in ladder.buckets})


@pytest.mark.parametrize(
    ("platform", "size", "limit"),
    [
        ("cpu", Sizes(8192, 32, 512, 16, False), 20),
        ("cuda", Sizes(32_768, 64, 2048, 16, False), 30),
        ("neuron", Sizes(4096, 16, 1024, 128, True), 32),
    ],
)
def test_the_default_ladders(platform: str, size: Sizes, limit: int) -> None:
    assert len(size.ladder().buckets) <= limit, platform


@examples(150)
@given(sizes())
def test_buckets_stay_within_the_limits(size: Sizes) -> None:
    ladder = size.ladder()
    for bucket in ladder.context:
        assert bucket.length % size.block_size == 0
        assert 1 <= bucket.rows <= size.max_num_seqs
        assert bucket.tokens <= size.max_num_batched_tokens
        assert bucket.length <= bucket.width * size.block_size
        assert bucket.width <= size.full
    for bucket in ladder.generate:
        assert 1 <= bucket.rows <= size.max_num_seqs
        assert 1 <= bucket.width <= size.full
    assert list(ladder.context) == sorted(ladder.context)
    assert list(ladder.generate) == sorted(ladder.generate)
    assert GenerateBucket(size.max_num_seqs, size.full) in ladder.generate
    if not size.static_width:
        assert {b.width for b in ladder.buckets} == {size.full}


@pytest.mark.parametrize("budget", [0, -1, -4, -16, -17])
def test_no_budget_is_no_context_step(budget: int) -> None:
    ladder = Sizes(256, 32, 16, 16, False).ladder()
    assert ladder.pick_context([40, 3], [0, 0], budget) is None


def test_a_budget_below_a_block_still_takes_a_last_chunk() -> None:
    ladder = Sizes(256, 4, 64, 16, False).ladder()
    assert ladder.pick_context([16], [32], 15) is None
    choice = ladder.pick_context([15, 1], [32, 0], 15)
    assert choice is not None
    assert choice.lengths == (15,)


def test_short_prompts_share_a_graph() -> None:
    ladder = Sizes(8192, 32, 512, 16, False).ladder()
    choice = ladder.pick_context([20] * 16, [0] * 16, 512)
    assert choice is not None
    assert choice.lengths == (20,) * 16
    assert choice.bucket.rows == 16


def test_names_tell_buckets_apart() -> None:
    ladder = Sizes(4096, 16, 1024, 128, True).ladder()
    assert all(b.name.startswith(("context-", "generate-")) for b in ladder.buckets)
    assert [b.name for b in ladder.buckets[:1]] == ["generate-1-8"]


def test_a_batch_smaller_than_a_block_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_num_batched_tokens.*block size \(128\), got 64"):
        Sizes(4096, 16, 64, 128, True).ladder()


@st.composite
def listed_sizes(draw: st.DrawFn) -> Sizes:
    """Sizes with lists of lengths that are allowed, one of them or both."""
    size = draw(sizes())
    block = size.block_size
    longest = min(size.max_num_batched_tokens // block, size.full)
    context = draw(st.sets(st.integers(1, longest), min_size=1, max_size=5))
    generate = draw(st.sets(st.integers(1, size.full), max_size=5)) | {size.full}
    which = draw(st.sampled_from(("context", "generate", "both")))
    return replace(
        size,
        context_lengths=() if which == "generate" else tuple(n * block for n in context),
        generate_lengths=() if which == "context" else tuple(n * block for n in generate),
    )


@examples(150)
@given(listed_sizes(), st.data())
def test_listed_lengths_cover_every_legal_step(size: Sizes, data: st.DataObject) -> None:
    ladder, block = size.ladder(), size.block_size
    rows, width = data.draw(st.integers(1, size.max_num_seqs)), data.draw(st.integers(1, size.full))
    chosen = ladder.pick_generate(rows, width)
    assert (chosen.rows >= rows, chosen.width >= width) == (True, True)
    tokens = data.draw(st.integers(1, size.max_model_len))
    start = data.draw(st.integers(0, (size.max_model_len - tokens) // block)) * block
    budget = data.draw(st.integers(block, size.max_num_batched_tokens))
    choice = ladder.pick_context([tokens], [start], budget)
    assert choice is not None
    check_legal(Queue(size, ladder, [tokens], [start], budget), choice)
    if size.context_lengths:
        assert {bucket.length for bucket in ladder.context} == set(size.context_lengths)
    if size.generate_lengths:
        assert {bucket.width * block for bucket in ladder.generate} == set(size.generate_lengths)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"context_lengths": (128, 200)}, "context_buckets must be multiples of the block size 128, got 200: use 128 or 256"),
        ({"context_lengths": (100,)}, "got 100: use 128 or 256"),
        (
            {"context_lengths": (128, 4096)},
            "context_buckets holds 4096, but no sequence has more than 2048 tokens: leave it out, or raise --max-model-len",
        ),
        (
            {"context_lengths": (128, 2048)},
            "context_buckets holds 2048, more than max_num_batched_tokens 1024.*--max-num-batched-tokens 2048",
        ),
        ({"generate_lengths": (2048, 1000)}, "generate_buckets must be multiples of the block size 128, got 1000: use 896 or 1024"),
        ({"generate_lengths": (512, 1024)}, "generate_buckets end at 1024, but.*max_model_len 2000: add 2048, or use --max-model-len 1024"),
        ({"generate_lengths": (2048, 2176)}, "generate_buckets holds 2176, but no sequence has more than 2048"),
    ],
)
def test_lists_that_cannot_be_are_told_what_to_change(lists: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(Sizes(2000, 4, 1024, 128, True), **lists).ladder()
