"""Sampling parameters: every bad value is refused when it is given, by an error that names the field and the value."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest

from xlaserve.errors import InvalidRequestError
from xlaserve.sampling.params import (
    GREEDY_EPSILON,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_N,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    SamplingParams,
)

BAD: list[tuple[str, Any, str]] = [
    ("n", 0, "between 1 and 128, got 0"),
    ("n", -1, "got -1"),
    ("n", MAX_N + 1, "got 129"),
    ("n", 1.0, "integer, got 1.0"),
    ("n", "1", "integer, got '1'"),
    ("n", True, "integer, got True"),
    ("n", None, "integer, got None"),
    ("temperature", -0.1, "got -0.1"),
    ("temperature", 2.0001, "got 2.0001"),
    ("temperature", math.nan, "got nan"),
    ("temperature", math.inf, "got inf"),
    ("temperature", -math.inf, "got -inf"),
    ("temperature", "0.5", "got '0.5'"),
    ("temperature", True, "got True"),
    ("temperature", None, "got None"),
    ("temperature", 10**400, "temperature must be"),
    ("temperature", 1j, "got 1j"),
    ("top_k", -2, "at least -1|between -1"),
    ("top_k", 1.5, "got 1.5"),
    ("top_k", "all", "got 'all'"),
    ("top_k", False, "got False"),
    ("top_k", 2**31, "got 2147483648"),
    ("top_k", 2**70, "got 1180591620717411303424"),
    ("top_p", 0, "got 0"),
    ("top_p", 0.0, "got 0.0"),
    ("top_p", -0.5, "got -0.5"),
    ("top_p", 1.01, "got 1.01"),
    ("top_p", math.nan, "got nan"),
    ("top_p", None, "got None"),
    ("min_p", -0.01, "got -0.01"),
    ("min_p", 1.01, "got 1.01"),
    ("min_p", math.nan, "got nan"),
    ("min_p", [0.1], r"got \[0.1\]"),
    ("presence_penalty", 2.1, r"in \[-2, 2\], got 2.1"),
    ("presence_penalty", "1", "got '1'"),
    ("frequency_penalty", -2.1, "got -2.1"),
    ("frequency_penalty", math.nan, "got nan"),
    ("repetition_penalty", 0, r"in \[0.01, 100\], got 0"),
    ("repetition_penalty", -1.0, "got -1.0"),
    ("repetition_penalty", math.inf, "got inf"),
    ("repetition_penalty", None, "got None"),
    ("logit_bias", [1], "must map"),
    ("logit_bias", 0, "must map"),
    ("logit_bias", {"x": 1}, "got 'x'"),
    ("logit_bias", {"\u00b2": 1}, "integer"),
    ("logit_bias", {-1: 1}, "got -1"),
    ("logit_bias", {True: 1}, "got True"),
    ("logit_bias", {1: 100.5}, r"in \[-100, 100\], got 100.5"),
    ("logit_bias", {1: "2"}, "got '2'"),
    ("logit_bias", dict.fromkeys(range(MAX_LOGIT_BIAS + 1), 1.0), "at most 1024 entries, got 1025"),
    ("allowed_token_ids", [], "at least one id"),
    ("allowed_token_ids", 7, "got 7"),
    ("allowed_token_ids", [-1], "got -1"),
    ("allowed_token_ids", ["1"], "got '1'"),
    ("logprobs", -1, "between 0 and 20, got -1"),
    ("logprobs", 21, "got 21"),
    ("logprobs", True, "got True"),
    ("logprobs", 1.0, "got 1.0"),
    ("prompt_logprobs", -1, "between 0 and 20, got -1"),
    ("prompt_logprobs", 21, "got 21"),
    ("bad_words", [""], "non-empty"),
    ("bad_words", "", "non-empty"),
    ("bad_words", [3], "got 3"),
    ("bad_words", 3, "got 3"),
    ("bad_words", ["x"] * (MAX_BAD_WORDS + 1), "at most 128 strings, got 129"),
    ("seed", 2**63, "got 9223372036854775808"),
    ("seed", -(2**63) - 1, "got -9223372036854775809"),
    ("seed", 1.5, "got 1.5"),
    ("seed", "7", "got '7'"),
    ("seed", True, "got True"),
    ("max_tokens", 0, "at least 1, got 0"),
    ("max_tokens", -5, "got -5"),
    ("max_tokens", 3.0, "got 3.0"),
    ("max_tokens", "16", "got '16'"),
    ("min_tokens", -1, "got -1"),
    ("min_tokens", 1.0, "got 1.0"),
    ("min_tokens", None, "got None"),
    ("stop", "", "non-empty"),
    ("stop", ["a", ""], "non-empty"),
    ("stop", [1], "got 1"),
    ("stop", [None], "got None"),
    ("stop", 5, "got 5"),
    ("stop", 0, "got 0"),
    ("stop", True, "got True"),
    ("stop", False, "got False"),
    ("stop", b"abc", "stop must"),
    ("stop", {"a": 1}, "stop must"),
    ("stop", [["a"]], "stop must"),
    ("stop", ["x"] * (MAX_STOP_STRINGS + 1), "at most 16 strings, got 17"),
    ("stop_token_ids", [-1], "got -1"),
    ("stop_token_ids", [1.0], "got 1.0"),
    ("stop_token_ids", ["1"], "got '1'"),
    ("stop_token_ids", [True], "got True"),
    ("stop_token_ids", "12", "stop_token_ids must"),
    ("stop_token_ids", 5, "got 5"),
    ("stop_token_ids", 0, "got 0"),
    ("stop_token_ids", list(range(MAX_STOP_TOKEN_IDS + 1)), "at most 16 ids, got 17"),
    ("ignore_eos", 1, "got 1"),
    ("ignore_eos", "true", "got 'true'"),
    ("ignore_eos", None, "got None"),
    ("include_stop_str_in_output", 0, "got 0"),
    ("skip_special_tokens", None, "got None"),
    ("detokenize", "no", "got 'no'"),
    ("priority", 1.5, "got 1.5"),
    ("priority", 2**63, "between"),
    ("cache_salt", "", "non-empty"),
    ("cache_salt", 5, "got 5"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD, ids=lambda x: repr(x)[:24])
def test_bad_values_are_named(field: str, value: object, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field
    assert str(caught.value).startswith(field)


def test_values_that_contradict_each_other() -> None:
    with pytest.raises(InvalidRequestError, match="min_tokens=17 and max_tokens=16") as caught:
        SamplingParams(min_tokens=17)
    assert (caught.value.field, caught.value.value) == ("min_tokens", 17)
    with pytest.raises(InvalidRequestError, match="detokenize") as caught:
        SamplingParams(stop="a", detokenize=False)
    assert caught.value.field == "stop"
    assert SamplingParams(min_tokens=17, max_tokens=None).min_tokens == 17


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"n": MAX_N},
        {"temperature": 0},
        {"temperature": 2},
        {"temperature": 1e-30},
        {"top_k": -1},
        {"top_k": 2**31 - 1},
        {"top_p": 1},
        {"top_p": 5e-324},
        {"min_p": 0},
        {"min_p": 1},
        {"seed": 2**63 - 1},
        {"seed": -(2**63)},
        {"max_tokens": None},
        {"stop": ["x"] * MAX_STOP_STRINGS},
        {"stop": ("a", "\n\n")},
        {"stop": []},
        {"stop_token_ids": []},
        {"stop_token_ids": (0, 5)},
        {"detokenize": False},
    ],
)
def test_values_at_the_limits_are_accepted(good: dict[str, Any]) -> None:
    params = SamplingParams(**good)
    assert all(isinstance(stop, str) for stop in params.stop_strings)
    assert all(isinstance(token, int) for token in params.stop_ids)


def test_lists_become_tuples_of_their_own() -> None:
    stop, ids = ["a", "b"], [3, 4]
    params = SamplingParams(stop=stop, stop_token_ids=ids)
    stop.append("c")
    ids.append(5)
    assert (params.stop_strings, params.stop_ids) == (("a", "b"), (3, 4))
    assert SamplingParams(stop="ab").stop_strings == ("ab",)
    assert (SamplingParams().stop_strings, SamplingParams().stop_ids) == ((), ())
    assert dataclasses.replace(params, n=2).stop_strings == ("a", "b")
    assert hash(params) == hash(SamplingParams(stop=["a", "b"], stop_token_ids=[3, 4]))


def test_logit_bias_takes_the_keys_of_json_and_copies() -> None:
    given = {"7": 1, 8: -2.5}
    params = SamplingParams(logit_bias=given)  # type: ignore[arg-type]
    given["9"] = 3
    assert params.logit_bias == {7: 1.0, 8: -2.5}
    assert dataclasses.replace(params, n=2).logit_bias == params.logit_bias
    assert SamplingParams(logit_bias={}) == SamplingParams(bad_words=[]) == SamplingParams()
    assert SamplingParams(bad_words="a", allowed_token_ids=[3]) == SamplingParams(bad_words=["a"], allowed_token_ids=(3,))


def test_nothing_can_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().n = 2  # type: ignore[misc]


def test_greedy_is_a_temperature_of_nothing() -> None:
    assert SamplingParams(temperature=0).greedy
    assert SamplingParams(temperature=GREEDY_EPSILON / 2).greedy
    assert not SamplingParams(temperature=0.01).greedy


def test_no_jax_is_needed() -> None:
    code = "import sys; from xlaserve import SamplingParams; SamplingParams(); assert not {'jax', 'numpy', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
