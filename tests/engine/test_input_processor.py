"""Requests: what is wrong with one is found before the engine sees it, and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tooling.engine_info import engine_info
from xlaserve.engine.input_processor import InputProcessor
from xlaserve.errors import InvalidRequestError
from xlaserve.models.checkpoint import open_checkpoint
from xlaserve.models.tokenizer import Tokenizer
from xlaserve.sampling.params import SamplingParams

LIMIT = 32


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Callable[[str], Path]) -> Tokenizer:
    return open_checkpoint(tiny_model("llama3")).tokenizer()


def processor(tokenizer: Any, seed: int = 0) -> InputProcessor:
    return InputProcessor(tokenizer, engine_info(max_model_len=LIMIT, eos_ids=(1, 3)), seed=seed)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "must not be empty"),
        ([], "must not be empty"),
        ((), "must not be empty"),
        ([512], "token id 512.*vocabulary of 512"),
        ([-1], "token id -1"),
        ([2**70], "vocabulary of 512"),
        ([1, 2.0], "got 2.0"),
        ([True], "got True"),
        ([None], "got None"),
        (["a"], "got 'a'"),
        ([[1]], r"got \[1\]"),
        ("\udcff", "surrogate"),
        ([5] * LIMIT, "32 tokens.*model length of 32"),
        ([5] * 1000, "1000 tokens"),
        ("word " * 200, "must fit the model length of 32"),
        (None, "prompt must be"),
        (5, "prompt must be"),
        (5.5, "prompt must be"),
        (b"text", "prompt must be"),
        ({"text": "a"}, "prompt must be"),
        (object(), "prompt must be"),
        (np.array([[5, 6]]), "prompt must be"),
        (iter([5]), "prompt must be"),
    ],
    ids=lambda x: repr(x)[:24],
)
def test_bad_prompts(prompt: object, message: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        processor(tokenizer).request(prompt, SamplingParams(), None)  # type: ignore[arg-type]
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(
    ("params", "field", "message"),
    [
        ({"stop_token_ids": [512]}, "stop_token_ids", "token id 512"),
        ({"stop_token_ids": [5, 2**40]}, "stop_token_ids", "out of the vocabulary of 512"),
        ({"min_tokens": 31, "max_tokens": 31}, "min_tokens", "at most 30.*length of 32.*got 31"),
        ({"min_tokens": 10**6, "max_tokens": None}, "min_tokens", "got 1000000"),
    ],
)
def test_parameters_that_do_not_fit_the_model(params: dict[str, Any], field: str, message: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        processor(tokenizer).request([5, 6], SamplingParams(**params), None)
    assert caught.value.field == field


def test_a_text_without_tokens_is_no_prompt() -> None:
    class Stripping:
        """A tokenizer whose normalizer leaves nothing of blank text."""

        def encode(self, _text: str) -> list[int]:
            return []

    with pytest.raises(InvalidRequestError, match="empty") as caught:
        processor(Stripping()).request("   ", SamplingParams(), None)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(("length", "most", "wanted"), [(1, None, LIMIT), (31, None, LIMIT), (30, 1, 31), (10, 16, 26), (20, 10**9, LIMIT)])
def test_sequences_end_within_the_model_length(length: int, most: int | None, wanted: int, tokenizer: Tokenizer) -> None:
    request = processor(tokenizer).request([5] * length, SamplingParams(max_tokens=most), None)
    assert request.sequences[0].max_tokens == wanted


def test_what_a_request_holds(tokenizer: Tokenizer) -> None:
    request = processor(tokenizer).request("hello", SamplingParams(n=3, seed=7, stop_token_ids=[9]), "name")
    assert (request.request_id, request.prompt, request.prompt_ids) == ("name", "hello", tokenizer.encode("hello"))
    assert [s.index for s in request.sequences] == [0, 1, 2]
    assert len({s.seed for s in request.sequences}) == 3
    assert request.sequences[0].seed == 7
    for sequence in request.sequences:
        assert sequence.request_id == "name"
        assert sequence.stop_ids == {1, 3, 9}
        assert sequence.eos_ids == {1, 3}
        assert sequence.metrics is request.metrics
    ids = [5, 6]
    by_ids = processor(tokenizer).request(ids, SamplingParams(ignore_eos=True), None)
    ids.append(7)
    assert (by_ids.prompt, by_ids.prompt_ids) == (None, [5, 6])
    assert by_ids.sequences[0].stop_ids == set()


def test_names_and_streams_are_made_where_none_are_given(tokenizer: Tokenizer) -> None:
    inputs = processor(tokenizer)
    requests = [inputs.request([5], SamplingParams(), None) for _ in range(100)]
    assert len({request.request_id for request in requests}) == 100
    assert len({request.sequences[0].seed for request in requests}) == 100
    again, other = processor(tokenizer), processor(tokenizer, seed=1)
    assert again.request([5], SamplingParams(), None).sequences[0].seed == requests[0].sequences[0].seed
    assert other.request([5], SamplingParams(), None).sequences[0].seed != requests[0].sequences[0].seed


def test_priorities_need_a_policy_that_heeds_them(tokenizer: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"priority -1 has no meaning here.*--scheduling-policy priority") as error:
        processor(tokenizer).request([5], SamplingParams(priority=-1), None)
    assert error.value.field == "priority"
    heeding = InputProcessor(tokenizer, engine_info(max_model_len=LIMIT, eos_ids=(1, 3)), seed=0, by_priority=True)
    assert heeding.request([5], SamplingParams(priority=-1), None).sequences[0].params.priority == -1
