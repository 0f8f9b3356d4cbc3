"""Beam search: what a user may ask of it, and which continuations of which beams go on. Plain Python, no JAX.

The rules are those of `transformers` (`GenerationMixin._beam_search`), so that results are the same where log probabilities are.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from xlaserve.errors import InvalidRequestError
from xlaserve.sampling.params import MAX_LOGPROBS, SamplingParams, check_integer, check_number
from xlaserve.sampling.scores import TokenScore

MAX_BEAM_WIDTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchParams:
    """How the most likely completions of a prompt are searched for.

    Args:
        beam_width: sequences that go on at each step, and completions that are given, 1 to 16.
        max_tokens: most tokens of a completion; None means up to the model length.
        length_penalty: a completion's score is its log probability divided by its number of tokens to this power, -10 to 10: above 0
            longer ones do better.
        early_stopping: when to end: True, as soon as beam_width completions have ended; False, when the best sequence that goes on, at
            its present length, scores no better than the worst of them; "never", when no longer sequence could.
        ignore_eos: go on past the model's end-of-sequence ids.
        skip_special_tokens: leave special tokens out of the text.
        detokenize: make text at all.
        priority: place in line, as in `SamplingParams`.
        cache_salt: who may share the computed prompt, as in `SamplingParams`.

    Raises:
        InvalidRequestError: a value has the wrong type or is out of range.
    """

    # What `SamplingParams` has besides, and a search has not.
    logprobs: ClassVar[None] = None
    prompt_logprobs: ClassVar[None] = None

    beam_width: int
    max_tokens: int | None = 16
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    detokenize: bool = True
    priority: int = 0
    cache_salt: str | None = None

    def __post_init__(self) -> None:
        check_integer("beam_width", self.beam_width, 1, MAX_BEAM_WIDTH)
        check_number("length_penalty", self.length_penalty, -10.0, 10.0)
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise InvalidRequestError(
                f'early_stopping must be true, false or "never", got {self.early_stopping!r}.',
                field="early_stopping",
                value=self.early_stopping,
            )
        self.sampling(1)

    @property
    def n(self) -> int:
        """Completions that are given."""
        return self.beam_width

    def sampling(self, candidates: int) -> SamplingParams:
        """What each beam asks of a step: the scores of its most likely next tokens.

        Args:
            candidates: how many.
        """
        return SamplingParams(
            temperature=0.0,
            logprobs=candidates,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            skip_special_tokens=self.skip_special_tokens,
            detokenize=self.detokenize,
            priority=self.priority,
            cache_salt=self.cache_salt,
        )


GenerationParams = SamplingParams | BeamSearchParams
"""What a request may ask for."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A completion that has ended.

    Args:
        token_ids: its tokens, the end-of-sequence id included where it has one.
        logprob: natural logarithm of its probability.
        score: `logprob` with the length penalty; larger is better.
        finish_reason: "stop" where it ends with an end-of-sequence id, else "length".
    """

    token_ids: list[int]
    logprob: float
    score: float
    finish_reason: Literal["stop", "length"]


class Branch(NamedTuple):
    """One sequence of the next step: which of the present ones it goes on from, and with which token."""

    parent: int
    token: int


def candidates_per_beam(beam_width: int, eos_ids: int) -> int:
    """How many next tokens of each beam a step must see: of these, enough do not end it, whatever the others do.

    Raises:
        InvalidRequestError: more than graphs give.
    """
    if (wanted := beam_width + eos_ids) > MAX_LOGPROBS:
        raise InvalidRequestError(
            f"beam_width must be at most {MAX_LOGPROBS - eos_ids} for this model with its {eos_ids} end-of-sequence ids, got {beam_width}.",
            field="beam_width",
            value=beam_width,
        )
    return wanted


class BeamSearch:
    """The search over the completions of one prompt.

    Args:
        params: what was asked for.
        eos_ids: ids that end a completion.
        most: tokens of the longest completion.

    Attributes:
        hypotheses: completions that have ended and are among the `beam_width` best so far, the best first.
        done: whether the search is over.
    """

    def __init__(self, params: BeamSearchParams, eos_ids: frozenset[int], most: int) -> None:
        self._params = params
        self._eos_ids = eos_ids
        self._most = most
        self._length = 0
        self._logprobs = [0.0]
        self.hypotheses: list[Hypothesis] = []
        self.done = False

    def advance(self, candidates: Sequences[Sequences[TokenScore]], outputs: Sequences[list[int]]) -> list[Branch]:
        """Take one step.

        Args:
            candidates: for each sequence, its most likely next tokens, `candidates_per_beam` of them.
            outputs: the tokens that each has generated.

        Returns:
            The sequences of the next step, the most likely first; none where the search is over.
        """
        width = self._params.beam_width
        self._length += 1
        last = self._length >= self._most
        ranked = [
            (logprob + candidate.logprob, parent, candidate.token_id)
            for parent, (logprob, scores) in enumerate(zip(self._logprobs, candidates, strict=True))
            for candidate in scores
        ]
        ranked.sort(key=lambda each: -each[0])
        branches: list[Branch] = []
        logprobs: list[float] = []
        for place, (logprob, parent, token) in enumerate(ranked):
            if last or token in self._eos_ids:
                # Whoever ends behind the first `beam_width` was only there so that enough go on.
                if place < width:
                    reason = "stop" if token in self._eos_ids else "length"
                    self.hypotheses.append(Hypothesis([*outputs[parent], token], logprob, self._score(logprob, self._length), reason))
            elif len(branches) < width:
                branches.append(Branch(parent, token))
                logprobs.append(logprob)
            elif place >= width:
                break
        self.hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
        del self.hypotheses[width:]
        self._logprobs = logprobs
        self.done = last or self._over()
        return [] if self.done else branches

    def _over(self) -> bool:
        """Whether nothing that goes on is expected to do better than what has ended."""
        params = self._params
        if len(self.hypotheses) < params.beam_width:
            return False
        if params.early_stopping is True:
            return True
        length = self._most if params.early_stopping == "never" and params.length_penalty > 0 else self._length
        return self._score(self._logprobs[0], length) <= self.hypotheses[-1].score

    def _score(self, logprob: float, length: int) -> float:
        return logprob / length**self._params.length_penalty
