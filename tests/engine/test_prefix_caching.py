"""Reusing KV changes no token: the same requests with and without the prefix cache, cold and warm, chunked, preempted, several at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY_ENGINE
from xlaserve import LLM, AsyncLLM, RequestOutput, SamplingParams

Tiny = Callable[[str], Path]

SAMPLERS = {
    "greedy": SamplingParams(temperature=0, max_tokens=40, ignore_eos=True),
    "seeded": SamplingParams(temperature=0.9, top_p=0.9, seed=7, max_tokens=40, ignore_eos=True),
    "three": SamplingParams(n=3, temperature=0.9, seed=3, max_tokens=40, ignore_eos=True),
}
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def alike(count: int = 10) -> list[list[int]]:
    """Prompts of which most begin alike, some beyond a chunk."""
    rng = random.Random(0)
    begin = [rng.randrange(4, 500) for _ in range(100)]
    return [begin[: rng.choice((0, 40, 100))] + [rng.randrange(4, 500) for _ in range(rng.randint(1, 50))] for _ in range(count)]


def ids(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[completion.token_ids for completion in output.outputs] for output in outputs]


@pytest.fixture(scope="module")
def plain(tiny_model: Tiny) -> dict[str, list[list[list[int]]]]:
    """What the requests give one by one, in whole prompts, without reuse."""
    with LLM(str(tiny_model("llama3")), **{**TINY_ENGINE, "max_num_batched_tokens": 256}, enable_prefix_caching=False) as llm:
        results = {name: [ids(llm.generate([prompt], params))[0] for prompt in alike()] for name, params in SAMPLERS.items()}
        assert llm.stats().prefix_cache_queries == 0
    assert all(len({str(tokens) for tokens in result}) > 5 for result in results.values())
    return results


@pytest.mark.parametrize("num_blocks", [129, 21], ids=["roomy", "tiny pool"])
@pytest.mark.parametrize("budget", [32, 256])
@pytest.mark.parametrize("caching", [False, True], ids=["off", "on"])
def test_equality_matrix(*, caching: bool, budget: int, num_blocks: int, tiny_model: Tiny, plain: dict[str, list[list[list[int]]]]) -> None:
    options = {**TINY_ENGINE, "max_num_batched_tokens": budget, "num_blocks": num_blocks, "enable_prefix_caching": caching}
    with LLM(str(tiny_model("llama3")), **options) as llm:
        for name, params in SAMPLERS.items():
            llm.reset_prefix_cache()
            before = llm.stats()
            cold = llm.generate(alike(), params)
            middle = llm.stats()
            warm = llm.generate(alike(), params)
            after = llm.stats()
            assert ids(cold) == plain[name], name
            assert ids(warm) == plain[name], name
            assert (middle.preemptions > before.preemptions) == (num_blocks == 21)
            if caching and num_blocks == 129:
                assert after.prefix_cache_hits - middle.prefix_cache_hits > middle.prefix_cache_hits - before.prefix_cache_hits
                assert sum(output.num_cached_tokens for output in warm) > 500
            elif not caching:
                assert all(output.num_cached_tokens == 0 for output in warm)
            assert (after.num_running, after.num_waiting, after.num_free_blocks) == (0, 0, after.num_blocks)
            assert after.compile_events == 0


def test_a_prompt_for_several_is_computed_about_once(tiny_llm: LLM) -> None:
    tiny_llm.reset_prefix_cache()
    prompt = [5 + i for i in range(150)]
    before = tiny_llm.stats()
    tiny_llm.generate([prompt], SamplingParams(n=4, seed=1, max_tokens=5, ignore_eos=True))
    after = tiny_llm.stats()
    assert after.scheduled_tokens - before.scheduled_tokens == 150 + 3 * (150 - 144) + 4 * 4
    assert after.prompt_tokens - before.prompt_tokens == 4 * 150


def test_cached_tokens_salts_and_resets(tiny_llm: LLM) -> None:
    tiny_llm.reset_prefix_cache()
    prompt = [9 + i for i in range(40)]

    def cached(**options: str) -> int:
        return tiny_llm.generate([prompt], SamplingParams(temperature=0, max_tokens=2, **options))[0].num_cached_tokens  # type: ignore[arg-type]

    assert [cached(), cached(), cached(cache_salt="a"), cached(cache_salt="a"), cached(cache_salt="b"), cached()] == [0, 32, 0, 32, 0, 32]
    tiny_llm.reset_prefix_cache()
    assert [cached(), cached(cache_salt="a")] == [0, 0]


def test_a_reset_while_serving(tiny_model: Tiny) -> None:
    async def test() -> None:
        llm = await asyncio.to_thread(AsyncLLM, str(tiny_model("llama3")), **TINY_ENGINE)
        prompt = [9 + i for i in range(40)]
        cached: list[int] = []
        for turn in range(4):
            if turn == 2:
                await llm.reset_prefix_cache()
            counts = [output.num_cached_tokens async for output in llm.generate(prompt, GREEDY)]
            assert len(set(counts)) == 1
            cached.append(counts[0])
        await llm.close()
        assert cached == [0, 32, 0, 32]

    asyncio.run(asyncio.wait_for(test(), 120))
