"""The sequences of one beam search: they come and go together, and each step of the search waits for all of them. No JAX."""

from __future__ import annotations

from dataclasses import dataclass, field

from xlaserve.engine.sequence import Sequence
from xlaserve.sampling.beam_search import BeamSearch, BeamSearchParams, Branch
from xlaserve.sampling.scores import TokenScore


@dataclass(slots=True, eq=False)
class BeamGroup:
    """One search.

    Its sequences hold slots and KV blocks, all of them or none: so whoever waits for the others never keeps from them what they need.

    Args:
        params: what was asked for.
        first: the request's sequence, which stands for the whole group to others, also when the search has dropped it.
        search: decides which sequences go on.
        beams: the sequences that go on now.
        candidates: the next tokens of those whose present step has been read.
    """

    params: BeamSearchParams
    first: Sequence
    search: BeamSearch
    beams: list[Sequence]
    candidates: dict[Sequence, list[TokenScore]] = field(default_factory=dict[Sequence, list[TokenScore]])

    @classmethod
    def of(cls, params: BeamSearchParams, first: Sequence, eos_ids: frozenset[int]) -> BeamGroup:
        """The group of a new request, whose sequence is told of it."""
        search = BeamSearch(params, eos_ids, first.max_tokens - len(first.prompt_ids))
        first.group = cls(params, first, search, [first])
        return first.group

    def take(self, sequence: Sequence, candidates: list[TokenScore]) -> bool:
        """Take note of the next tokens of one sequence; whether those of all are there now."""
        self.candidates[sequence] = candidates
        return len(self.candidates) == len(self.beams)

    def step(self) -> list[Branch]:
        """Let the search decide which sequences go on."""
        branches = self.search.advance([self.candidates[beam] for beam in self.beams], [beam.output_ids for beam in self.beams])
        self.candidates.clear()
        return branches

    @property
    def width(self) -> int:
        """Slots that it may come to need."""
        return self.params.beam_width
