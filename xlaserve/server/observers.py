"""Who is told when a generation begins and when it has ended: the request log and traces. Nobody, unless an option asks for it.

The observers of an HTTP request travel in its context, so that endpoints need not hand them on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from starlette.datastructures import Headers

from xlaserve.sampling.beam_search import GenerationParams


@dataclass(frozen=True, slots=True)
class Begun:
    """A generation that the engine has accepted.

    Args:
        generation_id: the id that its response carries.
        model: the model's name.
        prompts: token ids of each prompt.
        params: of its first prompt; others differ in nothing but `max_tokens`.
        decode: makes text of token ids.
    """

    generation_id: str
    model: str
    prompts: Sequence[Sequence[int]]
    params: GenerationParams
    decode: Callable[[Sequence[int]], str]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))


@dataclass(frozen=True, slots=True)
class Ended:
    """How it went. Durations are seconds; None where it did not get so far.

    Args:
        completion_tokens: of all choices.
        cached_tokens: prompt tokens that were not computed.
        finish_reasons: of each choice; "abort" and "error" for those that ended early.
        seconds: from arrival to the end.
        queue: from arrival until its first prompt was scheduled.
        first_token: from arrival to the first token.
        prefill: from the first prompt's being scheduled to the first token.
        decode: from the first token to the end.
    """

    completion_tokens: int
    cached_tokens: int
    finish_reasons: tuple[str, ...]
    seconds: float
    queue: float | None
    first_token: float | None
    prefill: float | None
    decode: float | None


class Observer(Protocol):
    """Of one HTTP request. Must be quick: it is called on the event loop."""

    def began(self, begun: Begun) -> None: ...

    def ended(self, begun: Begun, ended: Ended) -> None: ...


MakeObserver = Callable[[str, Headers], Observer]
"""Makes the observer of a request, from its id and its headers."""

OBSERVERS: ContextVar[tuple[Observer, ...]] = ContextVar("OBSERVERS", default=())
"""Of the HTTP request that is being answered."""
