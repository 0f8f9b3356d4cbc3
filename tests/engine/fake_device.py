"""A device without a device: it runs the batches that graphs would, on NumPy arrays, and its "model" notices every mistake.

The token that follows a text depends on every token before it, on its place, on the seed and on the place in the random stream. It is
computed from what the block tables reach, so a lost, stale or foreign block, a wrong position or a wrong slot gives another token.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequences

import numpy as np
from numpy.typing import NDArray

from xlaserve.buckets.graphs import StepOutput
from xlaserve.buckets.ladder import Bucket, ContextBucket
from xlaserve.buckets.layout import BANNED_AT, TOKENS_AT, Header, row_width, table_at
from xlaserve.sampling.beam_search import BeamSearch, BeamSearchParams, Hypothesis, candidates_per_beam
from xlaserve.sampling.scores import CHOSEN_AT, IDS_AT, RANK_AT, SCORE_WIDTH, VALUES_AT, TokenScore

VOCAB = 97
_M = np.uint64(0x9E3779B97F4A7C15)


def _mark(token: NDArray[np.int64], position: NDArray[np.int64]) -> NDArray[np.uint64]:
    """What a token at a position leaves in the cache; weighted by the position, so that order counts."""
    x = (token.astype(np.uint64) + np.uint64(1)) * _M + position.astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(29)
    return x * (position.astype(np.uint64) * np.uint64(2) + np.uint64(1))


def _choose(total: int, seed: int, place: int, banned: set[int]) -> int:
    x = (total ^ (seed * 0x94D049BB133111EB) ^ (place * 0x2545F4914F6CDD1D)) % 2**64
    x = (x ^ (x >> 31)) * 0xBF58476D1CE4E5B9 % 2**64
    token = (x >> 20) % VOCAB
    while token in banned:
        token = (token + 1) % VOCAB
    return token


def expected_tokens(prompt: Sequences[int], *, seed: int, count: int, stop_ids: frozenset[int], min_tokens: int) -> list[int]:
    """What the fake model gives for a prompt: up to `count` tokens, ended by a stop id after `min_tokens`."""
    with np.errstate(over="ignore"):
        total = int(_mark(np.array(prompt, np.int64), np.arange(len(prompt))).sum(dtype=np.uint64))
        out: list[int] = []
        while len(out) < count:
            token = _choose(total, seed, len(out), set(stop_ids) if len(out) < min_tokens else set())
            position = len(prompt) + len(out)
            out.append(token)
            if token in stop_ids and len(out) >= min_tokens:
                break
            total = (total + int(_mark(np.array([token]), np.array([position]))[0])) % 2**64
    return out


def _candidates(total: int, count: int) -> list[TokenScore]:
    """The most likely next tokens of a beam, and what they are worth."""
    scores: dict[int, float] = {}
    while len(scores) < count:
        token = _choose(total, 1, 7919 * len(scores), set(scores))
        scores[token] = -0.1 - (total >> 7 & 1023) / 4096 - 0.37 * len(scores)
    return [TokenScore(token, float(np.float32(logprob)), rank) for rank, (token, logprob) in enumerate(scores.items(), 1)]


def expected_beams(prompt: Sequences[int], params: BeamSearchParams, *, count: int, eos_ids: frozenset[int]) -> list[Hypothesis]:
    """What a beam search over the fake model finds, each sequence computed as a whole at every step."""
    search = BeamSearch(params, eos_ids, count)
    beams: list[list[int]] = [[]]
    while not search.done:
        candidates = []
        for beam in beams:
            text = [*prompt, *beam]
            with np.errstate(over="ignore"):
                total = int(_mark(np.array(text, np.int64), np.arange(len(text))).sum(dtype=np.uint64))
            candidates.append(_candidates(total, candidates_per_beam(params.beam_width, len(eos_ids))))
        beams = [[*beams[parent], token] for parent, token in search.advance(candidates, beams)]
    return search.hypotheses


class FakeRunner:
    """Stands in for `xlaserve.engine.runner.Runner`.

    Args:
        num_blocks: blocks, the null block included.
        block_size: tokens per block.
        max_num_seqs: slots; the place after the last is the spare one.
    """

    def __init__(self, num_blocks: int, block_size: int, max_num_seqs: int) -> None:
        self._block = block_size
        self._spare = max_num_seqs
        self._shape = num_blocks, block_size
        self._cache = np.full(self._shape, 12345, np.uint64)
        self._last = np.full(max_num_seqs + 1, -1, np.int64)
        self.runs = self.copies = 0

    def copy(self, pairs: Sequences[tuple[int, int]]) -> None:
        """Copy blocks; it makes no difference in which order."""
        sources, targets = {source for source, _ in pairs}, [target for _, target in pairs]
        assert 0 not in sources.union(targets)
        assert len(set(targets)) == len(targets)
        assert not sources & set(targets)
        self.copies += len(pairs)
        for source, target in pairs:
            self._cache[target] = self._cache[source]

    def run(self, bucket: Bucket, batch: NDArray[np.int32], mask: NDArray[np.int32] | None = None) -> StepOutput:
        """Check and compute one graph."""
        assert batch.shape == (bucket.rows, row_width(bucket))
        assert mask is None, "sequences of the fake model have no form"
        assert batch.dtype == np.int32
        self.runs += 1
        assert batch[:, Header.LENGTH].sum() <= bucket.tokens
        slots = batch[:, Header.SLOT]
        real = [slot for slot in slots if slot != self._spare]
        assert len(set(real)) == len(real), "two rows of one graph write one slot"
        with np.errstate(over="ignore"):
            scores = np.zeros((len(batch), SCORE_WIDTH), np.int32)
            sampled = np.array([self._row(bucket, *each) for each in zip(batch, scores, strict=True)], np.int32)
        self._last[slots] = sampled
        return StepOutput(sampled, scores)  # type: ignore[arg-type]

    def release(self, *, weights: bool) -> int:
        """Lose everything, and run nothing until `restore`."""
        del self._cache
        return 1000 * (1 + weights)

    def restore(self) -> None:
        """Begin again with nothing."""
        self._cache = np.full(self._shape, 54321, np.uint64)
        self._last[:] = -1

    def _row(self, bucket: Bucket, row: NDArray[np.int32], scores: NDArray[np.int32]) -> int:
        start, length = int(row[Header.START]), int(row[Header.LENGTH])
        table = row[table_at(bucket) :]
        slot = int(row[Header.SLOT])
        assert 0 <= slot <= self._spare
        assert ((table >= 0) & (table < len(self._cache))).all()
        padding = length == 0
        assert padding == (slot == self._spare and not table.any()), "rows without a token are padding, and no others"
        length = max(length, 1)
        assert start + length <= bucket.width * self._block, "a row reaches beyond its table"
        if isinstance(bucket, ContextBucket):
            assert length <= bucket.length
            assert start % self._block == 0, "a chunk begins inside a block"
            places = bucket.length
            tokens = row[TOKENS_AT : TOKENS_AT + places].astype(np.int64)
            assert (tokens[length:] == 0).all()
        else:
            places = 1
            tokens = np.array([row[Header.TOKEN] - 1 if row[Header.TOKEN] else self._last[slot]], np.int64)
        if not padding:
            assert (tokens[:length] >= 0).all(), "the table of last tokens holds nothing for this row"
            held = -(-(start + length) // self._block)
            assert table[:held].all(), "a token would land in the null block"
            assert len(set(table[:held].tolist())) == held
        positions = start + np.arange(places)
        wanted = positions // self._block
        blocks = np.where(wanted < len(table), table[np.minimum(wanted, len(table) - 1)], 0)
        self._cache[blocks, positions % self._block] = _mark(tokens, positions)
        if padding:
            return 0
        end = start + length
        read = self._cache[table[: -(-end // self._block)]].ravel()[:end]
        if row[Header.LOGPROBS] > 1:
            likely = _candidates(int(read.sum(dtype=np.uint64)), int(row[Header.LOGPROBS]) - 1)
            scores[RANK_AT] = 1
            scores[IDS_AT : IDS_AT + len(likely)] = [each.token_id for each in likely]
            values = np.array([each.logprob for each in likely], np.float32).view(np.int32)
            scores[CHOSEN_AT], scores[VALUES_AT : VALUES_AT + len(likely)] = values[0], values
            return likely[0].token_id
        seed = int(row[[Header.SEED_LOW, Header.SEED_HIGH]].view(np.uint64)[0])
        banned = set(row[BANNED_AT:TOKENS_AT].tolist()) - {-1}
        return _choose(int(read.sum(dtype=np.uint64)), seed, int(row[Header.PLACE]), banned)
