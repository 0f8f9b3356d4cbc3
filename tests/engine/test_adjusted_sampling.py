"""Penalties, biases and bad words in whole generations: every token is the one that plain NumPy chooses from the model's logits."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.test_llm import assert_idle, ids, prompts
from tests.tooling.engine_logits import engine_logits
from tests.tooling.golden import load_tiny
from xlaserve import LLM, SamplingParams
from xlaserve.errors import InvalidRequestError

Tiny = Callable[[str], Path]
LENGTH = 24
CLOSE = 1e-3  # logits that are nearer to each other may change places between two correct implementations


def adjusted(logits: np.ndarray, prompt: Sequence[int], output: Sequence[int], params: SamplingParams) -> np.ndarray:
    """Repetition penalty as Hugging Face's RepetitionPenaltyLogitsProcessor, the others as OpenAI and vLLM define them."""
    scores = logits.astype(np.float64)
    for token, bias in (params.logit_bias or {}).items():
        scores[token] += bias
    for token in {*prompt, *output}:
        scores[token] = scores[token] * params.repetition_penalty if scores[token] < 0 else scores[token] / params.repetition_penalty
    for token in set(output):
        scores[token] -= params.presence_penalty + params.frequency_penalty * list(output).count(token)
    if params.allowed_token_ids:
        scores[np.setdiff1d(np.arange(len(scores)), params.allowed_token_ids)] = -np.inf
    return scores


def options(**values: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": LENGTH, "ignore_eos": True, **values})


GREEDY: list[SamplingParams] = [
    options(repetition_penalty=1.3),
    options(repetition_penalty=0.7),
    options(presence_penalty=1.5),
    options(frequency_penalty=0.8),
    options(frequency_penalty=-2.0, presence_penalty=-2.0),
    options(repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.5, logit_bias={3: 4, 50: -100, 99: 2.5}),
    options(logit_bias={7: 100}),
    options(allowed_token_ids=[10, 20, 30, 40, 50], frequency_penalty=1.0),
]


@pytest.mark.parametrize("params", GREEDY, ids=range(len(GREEDY)))
def test_every_token_is_the_one_that_numpy_chooses(params: SamplingParams, tiny_llm: LLM, tiny_model: Tiny) -> None:
    for prompt in prompts(2, seed=3):
        output = tiny_llm.generate([prompt], params)[0].outputs[0].token_ids
        logits = engine_logits(tiny_model("llama3"), [*prompt, *output])
        for i, token in enumerate(output):
            scores = adjusted(logits[len(prompt) - 1 + i], prompt, output[:i], params)
            assert scores.max() - scores[token] < CLOSE, i
    assert_idle(tiny_llm)


def test_the_first_token_is_that_of_transformers_logits(tiny_llm: LLM) -> None:
    params = options(repetition_penalty=1.5, max_tokens=1)
    for case in load_tiny("llama3").cases:
        scores = adjusted(case.logits[-1], case.prompt, [], params)
        assert tiny_llm.generate([list(case.prompt)], params)[0].outputs[0].token_ids == [int(scores.argmax())]


def test_penalties_change_what_is_generated(tiny_llm: LLM) -> None:
    prompt = prompts(1, seed=4)[0]
    plain = tiny_llm.generate([prompt], options())[0].outputs[0].token_ids
    for params in GREEDY:
        assert tiny_llm.generate([prompt], params)[0].outputs[0].token_ids != plain
    assert tiny_llm.generate([prompt], options())[0].outputs[0].token_ids == plain, "a slot's state stays with its owner"


def test_bad_words_of_several_tokens(tiny_llm: LLM) -> None:
    """Each greedy continuation with its own words forbidden: the words are gone, up to their last token nothing is forbidden."""
    tokenizer = tiny_llm.tokenizer
    for prompt in prompts(3, seed=5):
        output = tiny_llm.generate([prompt], options())[0].outputs[0]
        for start, length in ((0, 1), (3, 2), (6, 4)):
            text = tokenizer.decode(output.token_ids[start : start + length], skip_special_tokens=False)
            word = tokenizer.encode(text, add_special_tokens=False)
            if word != output.token_ids[start : start + length] or text.lstrip() != text:
                continue
            changed = tiny_llm.generate([prompt], options(bad_words=[text]))[0].outputs[0].token_ids
            assert changed[: start + length - 1] == output.token_ids[: start + length - 1]
            assert not any(changed[i : i + length] == word for i in range(len(changed)))


def test_a_bad_word_may_end_differently(tiny_llm: LLM) -> None:
    prompt = prompts(1, seed=6)[0]
    plain = tiny_llm.generate([prompt], options())[0].outputs[0].token_ids
    request = tiny_llm._inputs.request(prompt, options(bad_words=["the", "of it"]), None)  # pyright: ignore[reportPrivateUsage]
    words = request.sequences[0].bad_words
    encode = tiny_llm.tokenizer.encode
    assert tuple(encode("the", add_special_tokens=False)) in words
    assert tuple(encode("of it", add_special_tokens=False)) in words
    assert plain == tiny_llm.generate([prompt], options(bad_words=["zqzqzqzq"]))[0].outputs[0].token_ids


def test_only_allowed_tokens_are_drawn(tiny_llm: LLM) -> None:
    allowed = [11, 47, 333]
    params = SamplingParams(temperature=2.0, seed=1, n=3, max_tokens=40, ignore_eos=True, allowed_token_ids=allowed)
    output = tiny_llm.generate([[5, 6, 7]], params)[0]
    assert {token for completion in output.outputs for token in completion.token_ids} == set(allowed)


@pytest.mark.parametrize(
    ("params", "field", "part"),
    [
        ({"logit_bias": {512: 1}}, "logit_bias", "vocabulary of 512"),
        ({"allowed_token_ids": [3, 512]}, "allowed_token_ids", "vocabulary of 512"),
        ({"bad_words": ["abcdefghijklmnopqrstuvwxyz" * 4]}, "bad_words", "at most 16"),
        ({"allowed_token_ids": [1], "min_tokens": 2, "stop_token_ids": [1]}, "allowed_token_ids", "leaves no token"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(params: dict[str, Any], field: str, part: str, tiny_llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match=part) as caught:
        tiny_llm.generate([[5, 6]], SamplingParams(**params))
    assert caught.value.field == field
    assert_idle(tiny_llm)


MIXED: list[SamplingParams] = [
    options(repetition_penalty=1.3),
    options(temperature=0.9, seed=1, presence_penalty=1.0, frequency_penalty=0.5),
    options(temperature=1.0, seed=2, n=3, repetition_penalty=1.1, logit_bias={9: 3, 10: -100}),
    options(temperature=1.5, seed=3, allowed_token_ids=list(range(20, 90)), frequency_penalty=2.0),
    options(temperature=0.7, seed=4, bad_words=["a", "the"], min_tokens=10, ignore_eos=False),
    options(),
    options(temperature=1.0, seed=5, top_p=0.9),
]


@pytest.fixture(scope="module")
def pressed(tiny_model: Tiny) -> Generator[LLM]:
    """An engine with small chunks and so few blocks that it must preempt."""
    with LLM(str(tiny_model("llama3")), max_model_len=256, max_num_seqs=8, max_num_batched_tokens=32, num_blocks=33) as llm:
        yield llm


def test_alone_in_a_crowd_and_under_pressure_are_equal(tiny_llm: LLM, pressed: LLM) -> None:
    crowd = prompts(3 * len(MIXED), longest=100, seed=8)
    params = MIXED * 3
    alone = [ids(tiny_llm.generate([prompt], each))[0] for prompt, each in zip(crowd, params, strict=True)]
    assert ids(tiny_llm.generate(crowd, params)) == alone
    before = pressed.stats().preemptions
    assert ids(pressed.generate(crowd, params)) == alone
    assert pressed.stats().preemptions > before
    assert_idle(pressed)
    assert pressed.stats().compile_events == 0
