"""What a user may ask of one generation: `SamplingParams`, validated when made, immutable afterwards. Imports no JAX."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from xlaserve.errors import InvalidRequestError

MAX_N = 128
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 16
GREEDY_EPSILON = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen and when generation ends.

    Args:
        n: independent completions to generate for the prompt, 1 to 128.
        temperature: 0 chooses the most likely token (greedy); otherwise logits are divided by it, up to 2.
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of most likely tokens whose probabilities sum to at least top_p, in (0, 1] (Holtzman et al., 2020).
        min_p: drop tokens less likely than min_p times the most likely one, in [0, 1] (Nguyen et al., 2024).
        seed: makes the random stream reproducible; None draws one per request.
        stop: strings that end generation; the text ends before the match.
        stop_token_ids: token ids that end generation, besides the model's own end-of-sequence ids.
        max_tokens: most tokens to generate; None means up to the model length.
        min_tokens: end-of-sequence and stop ids cannot be chosen, and stop strings do not end, before this many tokens.
        ignore_eos: go on past the model's end-of-sequence ids.
        include_stop_str_in_output: keep the matched stop string in the text.
        skip_special_tokens: leave special tokens out of the text.
        detokenize: make text at all; without it outputs carry token ids only, and `stop` is refused.
        priority: place in line where the engine schedules by priority: lower ones first, equal ones in order of arrival.
        cache_salt: computed prompts are shared only among requests with the same salt; None shares with all that have none.

    Raises:
        InvalidRequestError: a value has the wrong type or is out of range.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | tuple[str, ...] | None = None
    stop_token_ids: list[int] | tuple[int, ...] | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    detokenize: bool = True
    priority: int = 0
    cache_salt: str | None = None

    def __post_init__(self) -> None:
        _integer("n", self.n, 1, MAX_N)
        _number("temperature", self.temperature, 0.0, 2.0)
        _integer("top_k", self.top_k, -1, 2**31 - 1)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**63 - 1)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, None)
        _integer("min_tokens", self.min_tokens, 0, None)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens must not exceed max_tokens, got min_tokens={self.min_tokens} and max_tokens={self.max_tokens}.",
                field="min_tokens",
                value=self.min_tokens,
            )
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "detokenize"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(
                    f"{name} must be true or false, got {getattr(self, name)!r}.", field=name, value=getattr(self, name)
                )
        _integer("priority", self.priority, -(2**63), 2**63 - 1)
        if self.cache_salt is not None and (not isinstance(self.cache_salt, str) or not self.cache_salt):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequestError(
                f"cache_salt must be a non-empty string, got {self.cache_salt!r}.", field="cache_salt", value=self.cache_salt
            )
        stop = (self.stop,) if isinstance(self.stop, str) else _items("stop", self.stop)
        if len(stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(f"stop may hold at most {MAX_STOP_STRINGS} strings, got {len(stop)}.", field="stop", value=len(stop))
        for string in stop:
            if not isinstance(string, str) or not string:
                raise InvalidRequestError(f"stop must hold non-empty strings, got {string!r}.", field="stop", value=string)
        if stop and not self.detokenize:
            raise InvalidRequestError(
                "stop needs detokenize=True, because stop strings are found in the text.", field="stop", value=list(stop)
            )
        ids = _items("stop_token_ids", self.stop_token_ids)
        if len(ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidRequestError(
                f"stop_token_ids may hold at most {MAX_STOP_TOKEN_IDS} ids, got {len(ids)}.", field="stop_token_ids", value=len(ids)
            )
        for token in ids:
            _integer("stop_token_ids", token, 0, None)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", ids)

    @property
    def greedy(self) -> bool:
        """True where the most likely token is always chosen."""
        return self.temperature < GREEDY_EPSILON

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, empty where none was given."""
        assert isinstance(self.stop, tuple)
        return self.stop

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """`stop_token_ids` as a tuple, empty where none was given."""
        assert isinstance(self.stop_token_ids, tuple)
        return self.stop_token_ids


def _items(name: str, value: object) -> tuple[object, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise InvalidRequestError(f"{name} must be a list, got {value!r}.", field=name, value=value)
    return tuple(cast("list[object]", value))


def _integer(name: str, value: object, low: int | None, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be an integer, got {value!r}.", field=name, value=value)
    if (low is not None and value < low) or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"between {low} and {high}"
        raise InvalidRequestError(f"{name} must be {limit}, got {value}.", field=name, value=value)


def _number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidRequestError(f"{name} must be a finite number, got {value!r}.", field=name, value=value)
    if value < low or value > high or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise InvalidRequestError(f"{name} must be in {bracket}{low:g}, {high:g}], got {value}.", field=name, value=value)
