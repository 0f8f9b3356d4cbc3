"""One completion being generated: its tokens, how far it has got, and what it holds. No JAX."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import count
from typing import TYPE_CHECKING

from xlaserve.engine.outputs import FinishReason, RequestMetrics
from xlaserve.paged.prefix import chain, root_digest
from xlaserve.sampling.params import SamplingParams

if TYPE_CHECKING:
    from xlaserve.engine.beam_group import BeamGroup
    from xlaserve.engine.structure import Structure

_KEYS = count()


class Status(Enum):
    """Where a sequence stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """One of the `n` completions of a request.

    The rule of scheduling: a sequence has `num_tokens` tokens, of which `num_computed` have their KV computed or on the way; each
    step brings the second number closer to the first, and the step that reaches the last token samples one more.

    Args:
        request_id: the request that it belongs to.
        index: which of the request's completions, 0 to n-1.
        prompt_ids: prompt token ids, at least one.
        params: how to sample.
        stop_ids: token ids that end it: the model's end-of-sequence ids, unless ignored, and the request's own.
        eos_ids: of these, the model's.
        seed: 64-bit key of its random stream.
        max_tokens: prompt and output tokens at which it ends.
        metrics: timing, shared by the request's completions.
        leader: the request's first completion, whose prompt blocks this one shares; None for the first itself.
        bad_words: token ids of each text that must not be generated.
        key: what the user's side and the engine call it; never given twice in a process.
        group: the beam search that it is a part of, if it is.
        structure: what its form says of the next token, if it has one.
    """

    request_id: str
    index: int
    prompt_ids: list[int]
    params: SamplingParams
    stop_ids: frozenset[int]
    eos_ids: frozenset[int]
    seed: int
    max_tokens: int
    metrics: RequestMetrics
    leader: Sequence | None = None
    key: int = field(default_factory=_KEYS.__next__)
    group: BeamGroup | None = None
    structure: Structure | None = None
    status: Status = Status.WAITING
    rank: tuple[int, int] = (0, 0)  # place in line: priority, then arrival
    output_ids: list[int] = field(default_factory=list[int])
    in_flight: int = 0  # sampled on the device, not read yet
    num_computed: int = 0
    block_ids: list[int] = field(default_factory=list[int])
    slot: int | None = None
    resident: bool = False  # whether the table of last tokens holds its newest token
    digests: list[bytes] = field(default_factory=list[bytes])
    num_published: int = 0  # blocks, from the first on, that have been offered for sharing
    num_prompt_counted: int = 0  # prompt tokens that statistics have counted
    num_cached_tokens: int | None = None  # tokens that it did not have to compute when it was admitted first
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()

    @property
    def num_known(self) -> int:
        """Tokens whose ids the host knows."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_tokens(self) -> int:
        """All tokens, those that the host has not read yet included."""
        return len(self.prompt_ids) + len(self.output_ids) + self.in_flight

    @property
    def num_drawn(self) -> int:
        """Tokens drawn from the random stream so far."""
        return len(self.output_ids) + self.in_flight

    @property
    def queued_tokens(self) -> int:
        """Tokens of its prompt that count as waiting while it waits: completions share one prompt."""
        return len(self.prompt_ids) if self.leader is None else 0

    def full_digests(self, block_size: int) -> list[bytes]:
        """Digests of all blocks that its known tokens fill. Each is computed once; completions of one prompt compute it once for all."""
        full = self.num_known // block_size
        digests = self.digests
        if len(digests) < full:
            if not digests and self.leader is not None:
                digests += self.leader.digests[: len(self.prompt_ids) // block_size]
            parent = digests[-1] if digests else root_digest(self.params.cache_salt or "")
            digests += chain(parent, self.tokens(len(digests) * block_size, full * block_size), block_size)
        return digests

    @property
    def unit(self) -> tuple[Sequence, ...]:
        """The sequences that get and lose their places together with this one."""
        return tuple(self.group.beams) if self.group is not None else (self,)

    @property
    def principal(self) -> Sequence:
        """The sequence that its request knows: for all that a beam search tries, the search's first."""
        return self.group.first if self.group is not None else self

    def fork(self) -> Sequence:
        """A sequence with the same tokens, which holds nothing yet and has no place."""
        return replace(
            self,
            leader=self if self.leader is None else self.leader,
            output_ids=self.output_ids.copy(),
            digests=self.digests.copy(),
            status=Status.WAITING,
            num_computed=0,
            block_ids=[],
            slot=None,
            resident=False,
        )

    @property
    def scores_prompt(self) -> bool:
        """Whether it has yet to give the log probabilities of its request's prompt, which must be computed then, not found in a cache."""
        return self.index == 0 and self.params.prompt_logprobs is not None and not self.output_ids

    def tokens(self, start: int, stop: int) -> list[int]:
        """Known token ids from place `start` to before `stop`."""
        prompt = len(self.prompt_ids)
        if stop <= prompt:
            return self.prompt_ids[start:stop]
        return self.prompt_ids[start:] + self.output_ids[max(0, start - prompt) : stop - prompt]


def stream_seed(seed: int, index: int) -> int:
    """64-bit key of the random stream of completion `index` of a request with this seed."""
    if index == 0:
        return seed % 2**64
    return int.from_bytes(hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest(), "little")
