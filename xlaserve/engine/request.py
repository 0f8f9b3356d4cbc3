"""A request under way, as the user's side keeps it. No JAX."""

from __future__ import annotations

from dataclasses import dataclass

from xlaserve.engine.outputs import RequestMetrics
from xlaserve.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Request:
    """What the user gave, and the sequences that come of it."""

    request_id: str
    prompt: str | None
    prompt_ids: list[int]
    sequences: tuple[Sequence, ...]
    metrics: RequestMetrics

    @property
    def num_outputs(self) -> int:
        """Completions that it gives."""
        group = self.sequences[0].group
        return len(self.sequences) if group is None else group.width

    @property
    def keys(self) -> list[int]:
        """Of its sequences, in order of index."""
        return [sequence.key for sequence in self.sequences]
