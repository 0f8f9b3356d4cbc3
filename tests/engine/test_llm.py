"""What a generation gives does not depend on what else the engine does: company, chunks, pressure, order."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY_ENGINE
from tests.tooling.golden import load_smollm2, load_tiny
from tests.tooling.tiny_models import FAMILIES
from xlaserve import LLM, RequestOutput, SamplingParams
from xlaserve.errors import InvalidRequestError

Tiny = Callable[[str], Path]


def prompts(count: int, longest: int = 150, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(4, 500) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def ids(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[completion.token_ids for completion in output.outputs] for output in outputs]


def greedy(max_tokens: int, **options: object) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **options)  # type: ignore[arg-type]


def assert_idle(llm: LLM) -> None:
    stats = llm.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers(family: str, tiny_model: Tiny) -> None:
    golden = load_tiny(family)
    with LLM(str(tiny_model(family)), max_model_len=256, max_num_seqs=2, max_num_batched_tokens=32, num_blocks=33) as llm:
        outputs = llm.generate([list(case.prompt) for case in golden.cases], greedy(len(golden.cases[0].greedy.tokens)))
        assert [output.outputs[0].token_ids for output in outputs] == [list(case.greedy.tokens) for case in golden.cases]


def test_smollm2_answers_as_transformers_does(smollm2: Path) -> None:
    chats = load_smollm2().chats
    assert len(chats) == 20
    with LLM(str(smollm2), max_model_len=512, num_blocks=513, max_num_seqs=32) as llm:
        assert [list(chat.prompt) for chat in chats] == [
            llm.tokenizer.encode(llm.tokenizer.render_chat(chat.messages), add_special_tokens=False) for chat in chats
        ]
        outputs = llm.generate([list(chat.prompt) for chat in chats], greedy(64))
        assert [output.outputs[0].token_ids for output in outputs] == [list(chat.greedy.tokens) for chat in chats]
        answer = llm.chat([{"role": "user", "content": "What is the capital of France?"}], SamplingParams(temperature=0, max_tokens=32))[0]
        assert "Paris" in answer.outputs[0].text
        assert answer.outputs[0].finish_reason == "stop"


@pytest.mark.parametrize("params", [greedy(12), SamplingParams(temperature=0.9, top_p=0.9, seed=7, max_tokens=12, ignore_eos=True)])
def test_alone_and_in_a_crowd(params: SamplingParams, tiny_model: Tiny) -> None:
    crowd = prompts(32)
    with LLM(str(tiny_model("llama3")), **{**TINY_ENGINE, "max_num_seqs": 32, "num_blocks": 257}) as llm:
        together = llm.generate(crowd, params)
        alone = [llm.generate([prompt], params)[0] for prompt in crowd]
        assert ids(together) == ids(alone)
        assert len({tuple(tokens[0]) for tokens in ids(together)}) > 16, "the prompts must not all give the same answer"


def test_chunked_and_whole_prompts(tiny_model: Tiny) -> None:
    crowd = prompts(8, longest=200)
    results = []
    for budget in (32, 256):
        with LLM(str(tiny_model("gemma3")), **{**TINY_ENGINE, "max_num_batched_tokens": budget}) as llm:
            results.append(ids(llm.generate(crowd, greedy(8))))
            assert llm.stats().steps > 0
    assert results[0] == results[1]


def test_preempted_or_not(tiny_model: Tiny) -> None:
    crowd = prompts(12, longest=60, seed=3)
    params = SamplingParams(temperature=0.8, seed=11, max_tokens=60, ignore_eos=True)
    results = []
    for num_blocks in (129, 17):
        with LLM(str(tiny_model("llama3")), **{**TINY_ENGINE, "num_blocks": num_blocks}) as llm:
            results.append((ids(llm.generate(crowd, params)), llm.stats().preemptions))
            assert_idle(llm)
    (roomy, none), (tight, some) = results
    assert none == 0
    assert some > 0
    assert roomy == tight


def test_seeds(tiny_llm: LLM) -> None:
    prompt = prompts(1)[0]

    def draw(seed: int | None) -> list[int]:
        return tiny_llm.generate([prompt], SamplingParams(seed=seed, max_tokens=16, ignore_eos=True))[0].outputs[0].token_ids

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)
    assert draw(None) != draw(None)
    assert draw(-1) == draw(-1)


def test_n_completions_are_independent(tiny_llm: LLM) -> None:
    prompt = prompts(1)[0]
    output = tiny_llm.generate([prompt], SamplingParams(n=4, seed=5, max_tokens=12, ignore_eos=True))[0]
    assert [completion.index for completion in output.outputs] == [0, 1, 2, 3]
    assert len({tuple(completion.token_ids) for completion in output.outputs}) == 4
    single = tiny_llm.generate([prompt], SamplingParams(seed=5, max_tokens=12, ignore_eos=True))[0]
    assert output.outputs[0].token_ids == single.outputs[0].token_ids
    again = tiny_llm.generate([prompt], SamplingParams(n=4, seed=5, max_tokens=12, ignore_eos=True))[0]
    assert ids([again]) == ids([output])


def test_stop_ids_strings_and_eos(tiny_llm: LLM) -> None:
    prompt = prompts(1)[0]
    whole = tiny_llm.generate([prompt], greedy(24))[0].outputs[0]
    assert (len(whole.token_ids), whole.finish_reason, whole.stop_reason) == (24, "length", None)

    first_at = {token: whole.token_ids.index(token) for token in whole.token_ids}
    token, at = max(first_at.items(), key=lambda item: item[1])
    stopped = tiny_llm.generate([prompt], greedy(24, stop_token_ids=[token]))[0].outputs[0]
    assert (stopped.token_ids, stopped.finish_reason, stopped.stop_reason) == (whole.token_ids[: at + 1], "stop", token)
    assert stopped.text == tiny_llm.tokenizer.decode(whole.token_ids[:at])

    text = whole.text
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    cut = tiny_llm.generate([prompt], greedy(24, stop=stop))[0].outputs[0]
    assert (cut.text, cut.finish_reason, cut.stop_reason) == (text[: text.index(stop)], "stop", stop)
    kept = tiny_llm.generate([prompt], greedy(24, stop=[stop], include_stop_str_in_output=True))[0].outputs[0]
    assert kept.text == text[: text.index(stop)] + stop
    assert_idle(tiny_llm)


def test_min_tokens_holds_stops_off(tiny_llm: LLM) -> None:
    prompt = prompts(1)[0]
    first = tiny_llm.generate([prompt], greedy(1))[0].outputs[0].token_ids[0]
    held = tiny_llm.generate([prompt], greedy(16, stop_token_ids=[first], min_tokens=5))[0].outputs[0]
    assert first not in held.token_ids[:5]
    assert len(held.token_ids) >= 6 or held.finish_reason == "stop"
    text = tiny_llm.generate([prompt], greedy(16))[0].outputs[0].text
    late = tiny_llm.generate([prompt], greedy(16, stop=text[0], min_tokens=10))[0].outputs[0]
    assert len(late.token_ids) >= 10


@pytest.mark.parametrize("max_tokens", [1, 2, None])
@pytest.mark.parametrize("short", [1, 2, 5])
def test_the_model_length_is_reached_exactly(max_tokens: int | None, short: int, tiny_llm: LLM) -> None:
    limit = tiny_llm.max_model_len
    prompt = [7 + i % 400 for i in range(limit - short)]
    output = tiny_llm.generate([prompt], SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True))[0].outputs[0]
    assert len(output.token_ids) == (short if max_tokens is None else min(short, max_tokens))
    assert output.finish_reason == "length"
    assert_idle(tiny_llm)


def test_outputs_carry_what_users_need(tiny_llm: LLM) -> None:
    outputs = tiny_llm.generate(["hello there", [5, 6, 7]], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
    text, tokens = outputs
    assert text.prompt == "hello there"
    assert text.prompt_token_ids == tiny_llm.tokenizer.encode("hello there")
    assert (tokens.prompt, tokens.prompt_token_ids) == (None, [5, 6, 7])
    for output in outputs:
        assert output.finished
        assert output.num_cached_tokens == 0
        times = output.metrics
        assert times.first_scheduled_time is not None
        assert times.first_token_time is not None
        assert times.finished_time is not None
        assert times.arrival_time <= times.first_scheduled_time <= times.first_token_time <= times.finished_time
        assert output.outputs[0].text == tiny_llm.tokenizer.decode(output.outputs[0].token_ids)
    silent = tiny_llm.generate([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, detokenize=False))[0]
    assert (silent.outputs[0].text, silent.outputs[0].token_ids) == ("", tokens.outputs[0].token_ids)


@pytest.mark.parametrize(
    ("prompt", "params", "field", "part"),
    [
        ("", {}, "prompt", "empty"),
        ([], {}, "prompt", "empty"),
        ([512], {}, "prompt", "vocabulary of 512"),
        ([-1], {}, "prompt", "vocabulary of 512"),
        ([1.5], {}, "prompt", "1.5"),
        ([True], {}, "prompt", "True"),
        ("\ud800", {}, "prompt", "surrogate"),
        ([5] * 256, {}, "prompt", "256"),
        ([5] * 1000, {}, "prompt", "1000"),
        ([5], {"stop_token_ids": [512]}, "stop_token_ids", "512"),
        ([5] * 250, {"min_tokens": 7, "max_tokens": 7}, "min_tokens", "at most 6"),
    ],
)
def test_bad_requests_name_field_and_limit(prompt: object, params: dict[str, object], field: str, part: str, tiny_llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match=part) as caught:
        tiny_llm.generate([prompt], SamplingParams(**params))  # type: ignore[list-item,arg-type]
    assert caught.value.field == field
    assert_idle(tiny_llm)
    assert tiny_llm.generate([[5, 6]], greedy(2))[0].finished


def test_two_hundred_random_requests_compile_nothing_and_waste_little(tiny_model: Tiny) -> None:
    """The mixed workload: 200 requests of random length, sampling and end, on an engine with pressure on its blocks."""
    rng = random.Random(1)
    with LLM(str(tiny_model("llama3")), max_model_len=512, max_num_seqs=8, max_num_batched_tokens=128, num_blocks=81) as llm:
        crowd = [[rng.randrange(4, 500) for _ in range(rng.randint(40, 440))] for _ in range(200)]
        params = [
            SamplingParams(
                temperature=rng.choice([0, 0.5, 1.0]),
                top_k=rng.choice([0, 1, 20]),
                top_p=rng.choice([1.0, 0.8]),
                min_p=rng.choice([0.0, 0.1]),
                max_tokens=rng.randint(1, 40),
                min_tokens=rng.choice([0, 1]),
                ignore_eos=rng.random() < 0.8,
                stop=rng.choice([None, "e", ["th", "q"]]),
                n=rng.choice([1, 1, 1, 2]),
            )
            for _ in crowd
        ]
        outputs = llm.generate(crowd, params)
        stats = llm.stats()
        assert all(output.finished for output in outputs)
        assert stats.compile_events == 0
        assert stats.preemptions > 0
        assert_idle(llm)
        assert 1 - stats.used_token_slots / stats.allocated_token_slots < 0.04


def test_an_interrupted_call_leaves_nothing_behind(tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tiny_llm.generate(prompts(4), greedy(8))
    core = tiny_llm._core  # pyright: ignore[reportPrivateUsage]
    real, calls = core.step, iter(range(100))

    def interrupted() -> object:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real()

    monkeypatch.setattr(core, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_llm.generate(prompts(4), greedy(8))
    monkeypatch.undo()
    assert ids(tiny_llm.generate(prompts(4), greedy(8))) == ids(expected)
    assert_idle(tiny_llm)
