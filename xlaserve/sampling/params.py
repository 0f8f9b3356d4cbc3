"""What a user may ask of one generation: `SamplingParams`, validated when made, immutable afterwards. Imports no JAX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from xlaserve.errors import InvalidRequestError
from xlaserve.sampling.structured import StructuredOutput

MAX_N = 128
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 16
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 128
"""Bad words of a request after tokenization, where a word with and without a leading space may be two."""
MAX_BAD_WORD_TOKENS = 16
MAX_LOGPROBS = 20
GREEDY_EPSILON = 1e-5
MASKED = -1e30
"""Stands for minus infinity in masked logits: large, finite, and far from anything a model gives."""
NEVER = 4 * MASKED
"""Stands for minus infinity where an output's form excludes a token: where nothing else is left, even a token that is masked otherwise."""
_MAX_DIGITS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen and when generation ends.

    Args:
        n: independent completions to generate for the prompt, 1 to 128.
        temperature: 0 chooses the most likely token (greedy); otherwise logits are divided by it, up to 2.
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of most likely tokens whose probabilities sum to at least top_p, in (0, 1] (Holtzman et al., 2020).
        min_p: drop tokens less likely than min_p times the most likely one, in [0, 1] (Nguyen et al., 2024).
        presence_penalty: subtracted from the logit of every token generated so far, -2 to 2 (as OpenAI defines it).
        frequency_penalty: the same times how often the token was generated, -2 to 2.
        repetition_penalty: logits of tokens in the prompt or the output are divided by it where positive, else multiplied, 0.01 to 100
            (Keskar et al., 2019).
        logit_bias: token id to what is added to its logit, -100 to 100; at most 1024 entries.
        allowed_token_ids: the only token ids that may be generated.
        bad_words: texts that are not generated: their last token cannot follow the others. Each counts with and without a leading space.
        logprobs: give the log probability of every generated token, and of this many of the most likely ones besides, 0 to 20. They are
            of the model's own distribution, before penalties, biases and temperature.
        prompt_logprobs: the same for the tokens of the prompt, all but the first.
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
        structured: the form that the output must have.

    Raises:
        InvalidRequestError: a value has the wrong type or is out of range.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: list[int] | tuple[int, ...] | None = None
    bad_words: str | list[str] | tuple[str, ...] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
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
    structured: StructuredOutput | None = None

    def __post_init__(self) -> None:
        check_integer("n", self.n, 1, MAX_N)
        check_number("temperature", self.temperature, 0.0, 2.0)
        check_integer("top_k", self.top_k, -1, 2**31 - 1)
        check_number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        check_number("min_p", self.min_p, 0.0, 1.0)
        check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        check_number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        if self.logprobs is not None:
            check_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            check_integer("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        if self.seed is not None:
            check_integer("seed", self.seed, -(2**63), 2**63 - 1)
        if self.max_tokens is not None:
            check_integer("max_tokens", self.max_tokens, 1, None)
        check_integer("min_tokens", self.min_tokens, 0, None)
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
        check_integer("priority", self.priority, -(2**63), 2**63 - 1)
        if self.cache_salt is not None and (not isinstance(self.cache_salt, str) or not self.cache_salt):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequestError(
                f"cache_salt must be a non-empty string, got {self.cache_salt!r}.", field="cache_salt", value=self.cache_salt
            )
        if self.structured is not None and not isinstance(self.structured, StructuredOutput):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequestError(f"structured must be a StructuredOutput, got {self.structured!r}.", field="structured")
        stop = _texts("stop", self.stop)
        if len(stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(f"stop may hold at most {MAX_STOP_STRINGS} strings, got {len(stop)}.", field="stop", value=len(stop))
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
            check_integer("stop_token_ids", token, 0, None)
        allowed = _items("allowed_token_ids", self.allowed_token_ids)
        if self.allowed_token_ids is not None and not allowed:
            raise InvalidRequestError("allowed_token_ids must hold at least one id, got none.", field="allowed_token_ids", value=[])
        for token in allowed:
            check_integer("allowed_token_ids", token, 0, None)
        words = _texts("bad_words", self.bad_words)
        if len(words) > MAX_BAD_WORDS:
            raise InvalidRequestError(
                f"bad_words may hold at most {MAX_BAD_WORDS} strings, got {len(words)}.", field="bad_words", value=len(words)
            )
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))
        object.__setattr__(self, "allowed_token_ids", allowed or None)
        object.__setattr__(self, "bad_words", words)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", ids)

    @property
    def greedy(self) -> bool:
        """True where the most likely token is always chosen."""
        return self.temperature < GREEDY_EPSILON

    @property
    def penalized(self) -> bool:
        """True where a penalty changes logits."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)

    @property
    def biased(self) -> bool:
        """True where `logit_bias` or `allowed_token_ids` changes logits."""
        return bool(self.logit_bias or self.allowed_token_ids)

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


def _bias(value: object) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"logit_bias must map token ids to numbers, got {value!r}.", field="logit_bias", value=value)
    entries = cast("Mapping[object, object]", value)
    if len(entries) > MAX_LOGIT_BIAS:
        raise InvalidRequestError(
            f"logit_bias may hold at most {MAX_LOGIT_BIAS} entries, got {len(entries)}.", field="logit_bias", value=len(entries)
        )
    bias: dict[int, float] = {}
    for token, number in entries.items():
        # JSON objects have text for keys.
        key = int(token) if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < _MAX_DIGITS else token
        if isinstance(key, str):
            raise InvalidRequestError(f"logit_bias must have integer token ids for keys, got {key!r:.80}.", field="logit_bias", value=key)
        check_integer("logit_bias", key, 0, None)
        check_number("logit_bias", number, -100.0, 100.0)
        bias[cast("int", key)] = float(cast("float", number))
    return bias or None


def _texts(name: str, value: object) -> tuple[object, ...]:
    texts = (value,) if isinstance(value, str) else _items(name, value)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise InvalidRequestError(f"{name} must hold non-empty strings, got {text!r}.", field=name, value=text)
    return texts


def _items(name: str, value: object) -> tuple[object, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise InvalidRequestError(f"{name} must be a list, got {value!r}.", field=name, value=value)
    return tuple(cast("list[object]", value))


def check_integer(name: str, value: object, low: int | None, high: int | None) -> None:
    """Raise InvalidRequestError unless `value` is an integer from `low` to `high`; None is no limit."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be an integer, got {value!r}.", field=name, value=value)
    if (low is not None and value < low) or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"between {low} and {high}"
        raise InvalidRequestError(f"{name} must be {limit}, got {value}.", field=name, value=value)


def check_number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise InvalidRequestError unless `value` is a number from `low`, with `open_low` above it, to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidRequestError(f"{name} must be a finite number, got {value!r}.", field=name, value=value)
    if value < low or value > high or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise InvalidRequestError(f"{name} must be in {bracket}{low:g}, {high:g}], got {value}.", field=name, value=value)
