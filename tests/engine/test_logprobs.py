"""Log probabilities in whole generations: those of the model's logits, whatever the company, the chunks, the pressure or the penalties."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.test_llm import assert_idle, ids, prompts
from tests.tooling.engine_logits import engine_logits
from tests.tooling.golden import load_tiny
from xlaserve import LLM, AsyncLLM, CompletionOutput, Logprob, SamplingParams

Tiny = Callable[[str], Path]
TOLERANCE = 1e-4


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def check(entry: dict[int, Logprob], token: int, top: int, values: np.ndarray) -> None:
    """One place against the log probabilities [V] of a reference."""
    assert next(iter(entry)) == token
    assert top <= len(entry) <= top + 1
    for other, found in entry.items():
        assert found.logprob == pytest.approx(values[other], abs=TOLERANCE)
        # Tokens that are as likely may change places.
        assert (values > values[other] + TOLERANCE).sum() < found.rank <= 1 + (values > values[other] - TOLERANCE).sum()
    assert {found.rank for found in entry.values()} >= set(range(1, top + 1))


def options(**values: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 12, "ignore_eos": True, **values})


def test_the_first_token_as_transformers_gives_it(tiny_llm: LLM) -> None:
    for case in load_tiny("llama3").cases:
        output = tiny_llm.generate([list(case.prompt)], options(logprobs=5, max_tokens=1))[0].outputs[0]
        assert output.logprobs is not None
        check(output.logprobs[0], output.token_ids[0], 5, log_softmax(case.logits[-1]))


CASES = [
    options(logprobs=0),
    options(logprobs=20),
    options(logprobs=3, temperature=1.2, seed=1, n=3),
    # Raw: neither penalties nor biases nor temperature show.
    options(logprobs=2, temperature=0.5, seed=2, repetition_penalty=1.5, presence_penalty=2.0, logit_bias={5: 100}),
]


@pytest.mark.parametrize("params", CASES, ids=range(len(CASES)))
def test_every_token_as_the_model_gives_it(params: SamplingParams, tiny_llm: LLM, tiny_model: Tiny) -> None:
    for prompt in prompts(2, seed=20):
        for output in tiny_llm.generate([prompt], params)[0].outputs:
            values = log_softmax(engine_logits(tiny_model("llama3"), [*prompt, *output.token_ids]))[len(prompt) - 1 :]
            assert output.logprobs is not None
            assert len(output.logprobs) == len(output.token_ids)
            for place, (entry, token) in enumerate(zip(output.logprobs, output.token_ids, strict=True)):
                check(entry, token, params.logprobs or 0, values[place])
            total = sum(entry[token].logprob for entry, token in zip(output.logprobs, output.token_ids, strict=True))
            assert output.cumulative_logprob == pytest.approx(total, abs=1e-9)


def test_tokens_are_the_same_with_and_without(tiny_llm: LLM) -> None:
    for params in CASES:
        bare = replace(params, logprobs=None)
        prompt = prompts(1, seed=21)
        outputs = tiny_llm.generate(prompt, bare)
        assert ids(outputs) == ids(tiny_llm.generate(prompt, params))
        assert all(output.logprobs is None and output.cumulative_logprob is None for output in outputs[0].outputs)


def test_decoded_tokens(tiny_llm: LLM) -> None:
    output = tiny_llm.generate(["hello"], options(logprobs=20))[0].outputs[0]
    assert output.logprobs is not None
    for entry in output.logprobs:
        for token, found in entry.items():
            assert found.decoded_token == tiny_llm.tokenizer.token_bytes(token).decode("utf-8", "replace")


def close(a: CompletionOutput, b: CompletionOutput) -> bool:
    assert a.token_ids == b.token_ids
    assert (a.logprobs is None) == (b.logprobs is None)
    for one, other in zip(a.logprobs or [], b.logprobs or [], strict=True):
        # The last of the most likely tokens may change places with what is as likely.
        assert list(one)[:1] == list(other)[:1]
        for token in one.keys() & other.keys():
            assert one[token].logprob == pytest.approx(other[token].logprob, abs=TOLERANCE)
        assert len(one.keys() ^ other.keys()) <= 2
    return True


def test_alone_in_a_crowd_and_under_pressure_are_equal(tiny_llm: LLM, tiny_model: Tiny) -> None:
    params = [replace(each, max_tokens=40) for each in (*CASES, options(), options(temperature=0.9, seed=5))] * 3
    crowd = prompts(len(params), longest=100, seed=22)
    alone = [tiny_llm.generate([prompt], each)[0] for prompt, each in zip(crowd, params, strict=True)]
    together = tiny_llm.generate(crowd, params)
    with LLM(str(tiny_model("llama3")), max_model_len=256, max_num_seqs=8, max_num_batched_tokens=32, num_blocks=33) as pressed:
        squeezed = pressed.generate(crowd, params)
        assert pressed.stats().preemptions > 0
        assert pressed.stats().compile_events == 0
        assert_idle(pressed)
    for one, two, three in zip(alone, together, squeezed, strict=True):
        for a, b, c in zip(one.outputs, two.outputs, three.outputs, strict=True):
            assert close(a, b)
            assert close(a, c)


def test_increments_carry_their_own(tiny_model: Tiny) -> None:
    params = options(logprobs=2, temperature=1.0, seed=3, n=2, max_tokens=20)

    async def collect() -> dict[int, CompletionOutput]:
        engine = AsyncLLM(str(tiny_model("llama3")), max_model_len=256, max_num_seqs=8, max_num_batched_tokens=64, num_blocks=129)
        found = {index: CompletionOutput(index, "", [], logprobs=[]) for index in range(2)}
        try:
            async for output in engine.generate([5, 6, 7], params):
                for moved in output.outputs:
                    assert len(moved.logprobs or []) == len(moved.token_ids)
                    total = found[moved.index]
                    total.token_ids += moved.token_ids
                    assert total.logprobs is not None
                    total.logprobs += moved.logprobs or []
                    total.cumulative_logprob = moved.cumulative_logprob
        finally:
            await engine.close()
        return found

    for output in asyncio.run(collect()).values():
        assert output.logprobs is not None
        assert len(output.token_ids) == 20
        assert [next(iter(entry)) for entry in output.logprobs] == output.token_ids
        total = sum(entry[token].logprob for entry, token in zip(output.logprobs, output.token_ids, strict=True))
        assert output.cumulative_logprob == pytest.approx(total, abs=1e-9)


def check_prompt(found: list[dict[int, Logprob] | None] | None, prompt: Sequence[int], top: int, logits: np.ndarray) -> None:
    """Those of a whole prompt against reference logits [len(prompt), V]."""
    assert found is not None
    assert len(found) == len(prompt)
    assert found[0] is None
    values = log_softmax(logits)
    for place in range(1, len(prompt)):
        entry = found[place]
        assert entry is not None
        check(entry, prompt[place], top, values[place - 1])


@pytest.mark.parametrize("top", [0, 3, 20])
def test_prompt_logprobs_as_transformers_gives_them(top: int, tiny_llm: LLM) -> None:
    cases = load_tiny("llama3").cases
    assert [len(case.prompt) for case in cases] == [1, 17, 64, 150], "one token, and several chunks"
    params = options(prompt_logprobs=top, max_tokens=2)
    for _ in range(2):
        outputs = tiny_llm.generate([list(case.prompt) for case in cases], params)
        for case, output in zip(cases, outputs, strict=True):
            check_prompt(output.prompt_logprobs, case.prompt, top, case.logits)
            assert output.num_cached_tokens == 0, "what is found in the cache has no logits"
            assert output.outputs[0].token_ids == list(case.greedy.tokens[:2])
            assert output.outputs[0].logprobs is None
    assert_idle(tiny_llm)


def test_prompt_logprobs_beside_others_and_under_pressure(tiny_llm: LLM, tiny_model: Tiny) -> None:
    params = [
        options(prompt_logprobs=2, n=2, temperature=1.0, seed=4, max_tokens=40),
        options(max_tokens=40),
        options(prompt_logprobs=0, logprobs=1),
    ] * 4
    crowd = prompts(len(params), longest=100, seed=30)
    alone = [tiny_llm.generate([prompt], each)[0] for prompt, each in zip(crowd, params, strict=True)]
    with LLM(str(tiny_model("llama3")), max_model_len=256, max_num_seqs=8, max_num_batched_tokens=32, num_blocks=25) as pressed:
        squeezed = pressed.generate(crowd, params)
        assert pressed.stats().preemptions > 0
        assert_idle(pressed)
    for prompt, each, one, two in zip(crowd, params, alone, squeezed, strict=True):
        assert ids([one]) == ids([two])
        if each.prompt_logprobs is None:
            assert one.prompt_logprobs is two.prompt_logprobs is None
            continue
        logits = engine_logits(tiny_model("llama3"), prompt)
        check_prompt(one.prompt_logprobs, prompt, each.prompt_logprobs, logits)
        check_prompt(two.prompt_logprobs, prompt, each.prompt_logprobs, logits)


def test_prompt_logprobs_come_once(tiny_model: Tiny) -> None:
    prompt = prompts(1, longest=150, seed=31)[0]

    async def collect() -> list[int]:
        engine = AsyncLLM(str(tiny_model("llama3")), max_model_len=256, max_num_seqs=8, max_num_batched_tokens=64, num_blocks=129)
        try:
            outputs = engine.generate(prompt, options(prompt_logprobs=1, n=2, temperature=1.0, seed=1, max_tokens=20))
            return [len(output.prompt_logprobs) async for output in outputs if output.prompt_logprobs is not None]
        finally:
            await engine.close()

    assert asyncio.run(collect()) == [len(prompt)]
